# SPDX-License-Identifier: BSD-2-Clause
# The pipeline between two folders: what it refuses, what it leaves behind, what goes wrong on the way.
load helper
load pipeline

pipeline() {
	QSM_LAB=$scene scene_hosts exec a qsm-pipeline.sh --ssh="$(scene_hosts ssh)" "$@"
}

move() {
	scene_move "$@"
}

# Nothing of the move is left at the destination, and nothing has changed at the source.
untouched() {
	[ -z "$(ls -A "$dest")" ] || fail "left at the destination: $(find "$dest")"
	[ ! -e "$scene/b/var/vms/guest" ] || fail "the VM is defined at the destination"
	[ "$(owners)" = "a " ]
}

@test "a wrong command line is 64" {
	for args in '' 'guest' 'guest a b' '--no-such guest hostb:/x' '--retry=soon guest hostb:/x' \
		'--reserve=much guest hostb:/x' '--merge=after guest hostb:/x' '--plan --abort guest hostb:/x' \
		'--settle=both guest hostb:/x' '--i-fenced-the-other guest hostb:/x' 'guest -oProxyCommand=x:/y' \
		'../guest hostb:/x' '--name=new guest /x' '--network=a=b guest /x' '--hypervisor=../x guest hostb:/x'; do
		# shellcheck disable=SC2086
		run pipeline $args
		[ "$status" -eq 64 ] || fail "not 64: $args"
	done
}

@test "an unknown VM is 78" {
	run pipeline nobody "hostb:$dest"
	assert_status 78
	assert_output_has 'nobody'
}

@test "--plan shows what would be done and changes nothing" {
	small_guest off
	before=$(find "$scene/a/var" "$scene/b" | sort)
	run --separate-stderr move --plan --json
	assert_status 0
	[ "$(jq -r '"\(.ok) \(.disks | length) \(.blockers | length)"' <<<"$output")" = 'true 2 0' ] || fail "not so"
	[ "$(find "$scene/a/var" "$scene/b" | sort)" = "$before" ] || fail "something changed"
	untouched
}

@test "--plan predicts how long a running guest will be offline, and the report has it beside what was measured" {
	small_guest
	run --separate-stderr move --plan --json
	assert_status 0
	jq -e '.predicted_offline_seconds > 0.3 and .predicted_offline_seconds < 300 and .state_bytes > 20000000
		and .state_bytes <= .memory and .link_rate > 1000000' <<<"$output" >/dev/null || fail "not so"
	untouched
	run move --plan
	assert_output_has predicted_offline_seconds=
	run --separate-stderr move --json
	assert_status 0
	jq -e '.offline_seconds > 0 and .predicted_offline_seconds > 0.3
		and .predicted_offline_seconds < 20 * .offline_seconds' <<<"$output" >/dev/null || fail "not so"
}

@test "a prediction grows with what the guest writes and with a slow copy" {
	small_guest
	fast=$(move --plan --json | jq .delta_bytes)
	wait_for grows
}

# What the guest writes is measured for a second; where syncs take long that is little, or nothing.
grows() {
	slow=$(move --plan --json --rate-limit=50K | jq .delta_bytes)
	[ "$slow" -gt 400000 ] && [ "$slow" -gt $((10 * fast)) ]
}

@test "--plan names everything that stands in the way, in one go" {
	small_guest
	run --separate-stderr pipeline --plan --json --reserve=9000T guest "hostb:$scene/b/srv/nowhere"
	assert_status 78
	blockers=$(jq -r '.blockers[]' <<<"$output")
	[ "$(jq .ok <<<"$output")" = false ]
	grep -q 'no folder' <<<"$blockers" || fail "the folder is not named"
	grep -q 'blue' <<<"$blockers" || fail "the network is not named"
	grep -q 'reserve' <<<"$blockers" || fail "the reserve is not named"
	runs_at a
}

@test "a destination that cannot be reached is 78 before anything is touched" {
	small_guest off
	run pipeline guest hostc:/srv
	assert_status 78
	assert_output_has 'hostc'
	[ "$(owners)" = "a " ]
	[ -z "$(find "$scene/a/var" -name journal)" ]
}

@test "a login shell that prints a greeting is refused" {
	small_guest off
	printf '#!/bin/sh\necho hello\nexec "%s" "$@"\n' "$(scene_hosts ssh)" >"$scene/link"
	chmod +x "$scene/link"
	run move --ssh="$scene/link"
	assert_status 78
	assert_output_has 'hello'
	untouched
}

@test "a folder of that name at the destination is not touched" {
	small_guest off
	mkdir "$dest/guest"
	echo precious >"$dest/guest/file"
	run move
	assert_status 78
	assert_output_has 'exists already'
	[ "$(cat "$dest/guest/file")" = precious ]
}

@test "a VM that is off arrives off under another name, its source deleted on demand" {
	small_guest off
	sums=$(vhd-sum "$scene/a/srv/vms/vda.vhd" "$scene/a/srv/vms/vdb.vhd" | cut -d ' ' -f 1)
	run move --name='new name' --delete-source --json
	assert_status 0
	[ "$(scene_hosts exec b hv-qemu status 'new name')" = off ]
	[ "$(vhd-sum "$dest/new name/vda.vhd" "$dest/new name/vdb.vhd" | cut -d ' ' -f 1)" = "$sums" ]
	[ -z "$(ls -A "$scene/a/srv/vms")" ] || fail "left: $(ls "$scene/a/srv/vms")"
	[ ! -e "$scene/a/var/vms/guest" ]
	run move --name='new name' --delete-source
	assert_status 0
	assert_output_has finished
}

@test "names with spaces, quotes, dollars and letters beyond ASCII arrive as they are" {
	name=$'g\xc3\xa4st \'x\' "y" $(touch hit) `z`'
	dir=$scene/b/srv/$'-d\xc3\xafr \'q\' "r" $HOME;&|*'
	mkdir -p "$dir" "$scene/a/srv/vms/it's here"
	vhd-create --quiet --size=8M "$scene/a/srv/vms/it's here/disk one.vhd"
	"$scene_tools/guest" domain --network=blue "$name" "$scene/boot" \
		"vda=$scene/a/srv/vms/it's here/disk one.vhd" >"$scene/guest.xml"
	scene_hosts exec a hv-qemu --quiet define "$scene/guest.xml"
	run pipeline --network=blue=green -- "$name" "hostb:$dir"
	echo "$output"
	assert_status 0
	[ "$(scene_hosts exec b hv-qemu status -- "$name")" = off ]
	[ -f "$dir/$name/vda.vhd" ]
	[ -z "$(find "$scene" -name hit)" ]
}

@test "a login shell that is not sh makes no difference" {
	local shell shells='' n=0
	for shell in csh tcsh fish zsh; do
		shells="$shells $(command -v $shell || :)"
	done
	[ -n "${shells# }" ] || skip "no other shell is here"
	small_guest off
	for shell in $shells; do
		n=$((n + 1))
		mkdir "$dest/$n"
		behind_shell "$shell"
		run pipeline --network=blue=green --name="vm$n" --ssh="$scene/link" guest "hostb:$dest/$n"
		echo "$shell: $output"
		assert_status 0
		[ "$(scene_hosts exec b hv-qemu status "vm$n")" = off ]
		# It comes back in no time, for the next shell.
		scene_hosts exec a hv-qemu reclaim --token="$(scene_state a .token)" guest
		scene_hosts exec b hv-qemu --quiet undefine "vm$n"
	done
}

# A link to host B where the login shell is another.
behind_shell() { # SHELL
	cat >"$scene/link" <<-SH
		#!/bin/sh
		host=\$1
		shift
		export COMMAND="\$*"
		exec "$(scene_hosts ssh)" "\$host" 'exec $1 -c "\$COMMAND"'
	SH
	chmod +x "$scene/link"
}

@test "the scripts run under busybox sh on both sides" {
	command -v busybox >/dev/null || skip "no busybox"
	small_guest
	mkdir "$scene/bb"
	ln -s "$(command -v busybox)" "$scene/bb/sh"
	PATH=$scene/bb:$PATH
	QSM_LAB=$scene run scene_hosts exec a sh "$top/scripts/qsm-pipeline.sh" --ssh="$(scene_hosts ssh)" \
		--network=blue=green guest "hostb:$dest"
	echo "$output"
	assert_status 0
	runs_at b
	nothing_is_lost b
}

@test "a running guest moves to another folder of the same host" {
	small_guest
	mkdir -p "$scene/a/srv/new place"
	run pipeline --report="$scene/report" guest "$scene/a/srv/new place"
	echo "$output"
	assert_status 0
	runs_at a
	[ "$(scene_leaf a vda)" = "$scene/a/srv/new place/guest/vda.vhd" ]
	[ "$(jq -r .offline_seconds "$scene/report")" != null ]
	run pipeline guest "$scene/a/srv/new place"
	assert_status 0
	assert_output_has finished
	nothing_is_lost a
}

@test "a guest that is off moves to another folder of the same host" {
	small_guest off
	mkdir -p "$scene/a/srv/new"
	run pipeline --delete-source guest "$scene/a/srv/new"
	assert_status 0
	[ "$(scene_leaf a vdb)" = "$scene/a/srv/new/guest/vdb.vhd" ]
	[ -z "$(ls -A "$scene/a/srv/vms")" ]
	scene_start
	nothing_is_lost a
}

# The guest on host A, put aside.
saved_guest() {
	small_guest
	scene_hosts exec a hv-qemu --quiet save guest >"$scene/receipt"
}

@test "a saved guest moves to another folder of the same host, and stays saved" {
	saved_guest
	mkdir -p "$scene/a/srv/new"
	run pipeline --delete-source guest "$scene/a/srv/new"
	echo "$output"
	assert_status 0
	assert_output_has ', saved; offline_seconds=0.00'
	[ "$(scene_state a)" = saved ]
	[ "$(scene_leaf a vda)" = "$scene/a/srv/new/guest/vda.vhd" ]
	scene_hosts exec a hv-qemu --quiet resume guest
	runs_at a
	nothing_is_lost a
}

@test "a guest that is put aside while it is copied arrives saved, with what it wrote" {
	small_guest
	at copied 'hv-qemu --quiet save guest'
	run move
	echo "$output"
	assert_status 0
	happened
	[ "$(scene_state b)" = saved ]
	[ "$(owners)" = "b " ]
	scene_hosts exec b hv-qemu --quiet start guest
	runs_at b
	nothing_is_lost b
}

@test "a saved guest that is started while it is copied stays: 80" {
	saved_guest
	# The seventh record says that both disks are copied.
	at 7 "hv-qemu --quiet start guest"
	run move
	echo "$output"
	assert_status 80
	assert_output_has 'started meanwhile'
	untouched
	runs_at a
}

@test "a saved guest that was started and saved again after an interruption stays: 80" {
	saved_guest
	at copied 'kill -TERM $pipeline'
	run move
	assert_status 75
	assert_output_has 'saved here'
	scene_hosts exec a hv-qemu --quiet start guest
	scene_acks a 20
	scene_hosts exec a hv-qemu --quiet save guest >"$scene/receipt"
	run move
	echo "$output"
	assert_status 80
	untouched
	run move
	assert_status 0
	scene_hosts exec b hv-qemu --quiet start guest
	runs_at b
	nothing_is_lost b
}

@test "a guest that was off, started and stopped again after an interruption stays: 80" {
	small_guest off
	at copied 'kill -TERM $pipeline'
	run move
	assert_status 75
	scene_start
	scene_hosts exec a hv-qemu --quiet stop guest
	run move
	echo "$output"
	assert_status 80
	untouched
	[ "$(scene_state a)" = off ]
}

@test "a saved guest and a destination that has no room for its state: 80, and it is still saved" {
	saved_guest
	mkdir -p "$scene/bin"
	cat >"$scene/link" <<-SH
		#!/bin/sh
		host=\$1
		shift
		exec "$(scene_hosts ssh)" "\$host" "trap '' XFSZ; ulimit -f 90000; \$*"
	SH
	chmod +x "$scene/link"
	run move --ssh="$scene/link"
	echo "$output"
	assert_status 80
	assert_output_has 'guest is not moved and is saved here'
	untouched
	[ "$(scene_state a)" = saved ]
	scene_hosts exec a hv-qemu --quiet resume guest
	runs_at a
	nothing_is_lost a
}

@test "a saved state that changes on the way is noticed: 80, and it is still saved" {
	saved_guest
	mkdir "$scene/bin"
	cat >"$scene/bin/hv-bad" <<-SH
		#!/bin/sh
		case " \$* " in
		*" save "*) "$top/scripts/hv-qemu" "\$@" | { dd bs=1 count=70000 status=none; dd bs=1 count=1 status=none | tr '\\0-\\377' '\\1-\\377\\0'; cat; } ;;
		*) exec "$top/scripts/hv-qemu" "\$@" ;;
		esac
	SH
	chmod +x "$scene/bin/hv-bad"
	PATH=$scene/bin:$PATH run move --hypervisor=bad
	echo "$output"
	assert_status 80
	assert_output_has 'damaged'
	[ "$(scene_state a)" = saved ]
	scene_hosts exec a hv-qemu --quiet resume guest
	runs_at a
}

@test "a guest that stands still since its state was written to a file is refused: 78" {
	small_guest
	scene_hosts exec a hv-qemu --quiet save guest "$scene/state" >"$scene/receipt"
	run move
	assert_status 78
	assert_output_has 'resume it, or stop it, first'
	untouched
	scene_hosts exec a hv-qemu --quiet resume guest
	runs_at a
}

@test "a guest comes back to the host that it left" {
	small_guest
	move --quiet
	mkdir -p "$scene/a/srv/back"
	run scene_hosts exec b env QSM_LAB="$scene" qsm-pipeline.sh --ssh="$(scene_hosts ssh)" --network=green=blue \
		--delete-source guest "hosta:$scene/a/srv/back"
	echo "$output"
	assert_status 0
	runs_at a
	run move
	echo "$output"
	assert_status 0
	runs_at b
}

@test "a link that is cut during the copy: 75, and no second checkpoint" {
	small_guest
	at checkpoint "(until [ -e \"$dest/guest/.vda.vhd.partial.tmp\" ]; do sleep 0.1; done
		\"$scene_tools/hosts\" -C \"$scene\" link cut) >/dev/null 2>&1 &"
	run move --retry=0 --rate-limit=1M --json
	assert_status 75
	happened
	assert_output_has '"resumable"'
	runs_at a
	scene_hosts link restore
	count=$(find "$scene/a/srv/vms" -name 'vda*vhd' | wc -l)
	[ "$count" -eq 2 ]
	run move
	assert_status 0
	# One more for the last step, when the guest stands still.
	[ "$(find "$scene/a/srv/vms" -name 'vda*vhd' | wc -l)" -eq 3 ]
	[ "$(find "$dest/guest" | wc -l)" -eq 3 ] || fail "left: $(find "$dest/guest")"
	runs_at b
	nothing_is_lost b
}

# A copy whose link is cut when a part of the disk is durable. What was sent is in random.
cut_copy() {
	small_guest off
	head -c 24M /dev/urandom >"$scene/random"
	vhd-convert --quiet --force --from=raw --type=dynamic "$scene/random" "$scene/a/srv/vms/vda.vhd"
	move --rate-limit=1M --retry=0 3>&- &
	wait_for eval "vhd-recv --status \"$dest/guest/vda.vhd\" | grep -q 'of .* are here'"
	scene_hosts link cut
	status=0
	wait $! || status=$?
	scene_hosts link restore
	assert_status 75
}

arrived_whole() {
	[ "$(vhd-sum "$scene/random" | cut -d ' ' -f 1)" = "$(vhd-sum "$dest/guest/vda.vhd" | cut -d ' ' -f 1)" ]
}

@test "a copy that was cut goes on where it was, and is equal" {
	cut_copy
	run move --rate-limit=2M
	assert_status 0
	assert_output_has 'the rest of disk vda'
	arrived_whole
}

# A guest whose disk of records is large enough for its sums to be kept, and mostly a hole.
fixed_guest() {
	small_guest off
	vhd-convert --quiet --force --type=fixed "$scene/a/srv/vms/vda.vhd" "$scene/fixed"
	mv "$scene/fixed" "$scene/a/srv/vms/vda.vhd"
	scene_start
}

@test "what was copied is known at both ends before the guest stands still, also if the copy was cut" {
	local here=$scene/a/srv/vms/vda.vhd there=$dest/guest/vda.vhd
	fixed_guest
	move --rate-limit=500K --retry=0 3>&- &
	wait_for eval "vhd-recv --status \"$there\" | grep -q 'of .* are here'"
	scene_hosts link cut
	wait $! && fail "the link was not cut"
	scene_hosts link restore
	at pausing "vhd-info --json \"$here\" \"$there\" | jq -c '[.files[].sums_known]' >\"$scene/sums\""
	mv "$scene/bin/do" "$scene/bin/later"
	# as if both hosts had been started again since
	at copied "rm \"$here.sums\" \"$there.sums\"; mv \"\$here/later\" \"\$here/do\"; echo pausing >\"\$here/at\""
	run move
	assert_status 0
	assert_output_has 'the rest of disk vda'
	[ "$(cat "$scene/sums")" = '[true,true]' ] || fail "known: $(cat "$scene/sums")"
}

@test "what is left of a copy that was cut is damaged: the copy begins anew" {
	cut_copy
	# It has the name and the length, and is no disk.
	dd if=/dev/urandom of="$dest/guest/.vda.vhd.partial.tmp" bs=4k count=1 conv=notrunc status=none
	run move
	assert_status 0
	assert_output_has 'begins anew'
	arrived_whole
}

@test "a link that comes back while it is tried again is no failure" {
	small_guest
	at checkpoint "\"$scene_tools/hosts\" -C \"$scene\" link cut"
	move --retry=5m >"$scene/said" 2>&1 3>&- &
	wait_for grep -q 'trying again' "$scene/said" || fail "$(cat "$scene/said")"
	scene_hosts link restore
	wait $! || fail "$(cat "$scene/said")"
	runs_at b
}

@test "--abort takes an interrupted move back, and leaves nothing behind" {
	small_guest
	at copied "kill -TERM \$pipeline"
	run move
	assert_status 75
	happened
	[ -e "$dest/guest" ]
	run move --abort
	assert_status 80
	assert_output_has '.avhd above'
	untouched
	runs_at a
	run move --abort
	assert_status 0
	nothing_is_lost a
}

@test "a signal before the copy: nothing is copied, and the same command goes on" {
	small_guest
	at checkpoint 'kill -TERM $pipeline'
	run move
	assert_status 75
	[ ! -e "$dest/guest/vda.vhd" ] || fail "copied all the same"
	run move
	assert_status 0
	runs_at b
}

@test "a signal before the commit: the guest goes on at the source" {
	small_guest
	at pausing "kill -TERM \$pipeline"
	run move
	echo "$output"
	assert_status 80
	untouched
	runs_at a
	run move
	assert_status 0
	runs_at b
	nothing_is_lost b
}

@test "a signal after the commit changes nothing any more" {
	small_guest
	at yielding "kill -TERM \$pipeline"
	run move
	assert_status 0
	runs_at b
}

@test "the reserve of the source's file system ends the copy: 80" {
	small_guest
	mkdir "$scene/low"
	printf '#!/bin/sh\n[ ! -e "%s" ] || { echo; echo "fs 100 99 1 99%% /"; exit; }\nexec %s "$@"\n' "$scene/low/now" \
		"$(command -v df)" >"$scene/low/df"
	chmod +x "$scene/low/df"
	PATH=$scene/low:$PATH
	at checkpoint ": >\"$scene/low/now\""
	run move --rate-limit=2M
	echo "$output"
	assert_status 80
	assert_output_has 'free beside its AVHD'
	untouched
	runs_at a
}

# A transport that hands on so many bytes, then does COMMAND.
broken_link() { # BYTES COMMAND
	cat >"$scene/link" <<-SH
		#!/bin/sh
		{ head -c $1; $2; cat; } | "$(scene_hosts ssh)" "\$@"
	SH
	chmod +x "$scene/link"
}

@test "bytes that change on the way are noticed: 80, and the guest runs on" {
	small_guest
	broken_link 1000000 "head -c 1 | tr '\\000-\\377' '\\001-\\377\\000'"
	run move --ssh="$scene/link"
	echo "$output"
	assert_status 80
	untouched
	runs_at a
}

@test "a destination that has no room: 80, and the guest runs on" {
	small_guest
	cat >"$scene/link" <<-SH
		#!/bin/sh
		host=\$1
		shift
		exec "$(scene_hosts ssh)" "\$host" "trap '' XFSZ; ulimit -f 4000; \$*"
	SH
	chmod +x "$scene/link"
	run move --ssh="$scene/link"
	echo "$output"
	assert_status 80
	untouched
	runs_at a
}

@test "a source disk that cannot be read: 80, and the guest runs on" {
	small_guest
	mkdir "$scene/bad"
	printf '#!/bin/sh\nhead -c 100000 /dev/zero\nexit 74\n' >"$scene/bad/vhd-send"
	chmod +x "$scene/bad/vhd-send"
	PATH=$scene/bad:$PATH run move
	echo "$output"
	assert_status 80
	assert_output_has 'vda'
	untouched
	runs_at a
}

@test "a guest started while it was copied as off stays: 80" {
	small_guest off
	at copied "hv-qemu --quiet start guest"
	run move
	echo "$output"
	assert_status 80
	untouched
	runs_at a
}

@test "the link cut at the commit: 81, nothing can be started, the same command finishes" {
	small_guest
	at yielded "\"$scene_tools/hosts\" -C \"$scene\" link cut"
	run move --retry=0
	echo "$output"
	assert_status 81
	assert_output_has '--settle=source'
	[ "$(owners)" = '' ]
	run scene_hosts exec a hv-qemu resume guest
	assert_status 77
	run scene_hosts exec b hv-qemu start guest
	assert_status 77
	scene_hosts link restore
	run move
	assert_status 0
	runs_at b
	nothing_is_lost b
}

@test "--settle=source takes back what the destination has not heard of" {
	small_guest
	at yielded "\"$scene_tools/hosts\" -C \"$scene\" link cut"
	run move --retry=0
	assert_status 81
	run move --abort
	assert_status 81
	run move --settle=source
	assert_status 81
	assert_output_has '--i-fenced-the-other'
	[ "$(owners)" = '' ]
	scene_hosts link restore
	run move --settle=source
	echo "$output"
	assert_status 0
	untouched
	runs_at a
	nothing_is_lost a
}

@test "--settle=source takes back a saved guest, and it is saved" {
	saved_guest
	at yielded "\"$scene_tools/hosts\" -C \"$scene\" link cut"
	run move --retry=0
	assert_status 81
	[ "$(owners)" = '' ]
	run scene_hosts exec a hv-qemu resume guest
	assert_status 77
	scene_hosts link restore
	run move --settle=source
	echo "$output"
	assert_status 0
	[ "$(scene_state a)" = saved ]
	untouched
	scene_hosts exec a hv-qemu --quiet resume guest
	runs_at a
	nothing_is_lost a
}

@test "--settle=source with the destination fenced" {
	small_guest
	at yielded "\"$scene_tools/hosts\" -C \"$scene\" link cut"
	run move --retry=0
	assert_status 81
	run move --settle=source --i-fenced-the-other
	echo "$output"
	assert_status 0
	runs_at a
	nothing_is_lost a
}

@test "--settle=destination, said there, when the source is lost" {
	small_guest
	at yielded "\"$scene_tools/hosts\" -C \"$scene\" link cut"
	run move --retry=0
	assert_status 81
	scene_hosts crash a
	run scene_hosts exec b qsm-pipeline.sh --settle=destination guest "$dest"
	assert_status 81
	run scene_hosts exec b qsm-pipeline.sh --settle=destination --i-fenced-the-other guest "$dest"
	echo "$output"
	assert_status 0
	[ "$(scene_state b)" = running ]
	scene_acks b 20
	nothing_is_lost b
}

@test "what the destination owns is not taken back" {
	small_guest
	at resumed "kill -9 \$pipeline"
	run move
	happened
	run move --settle=source
	assert_status 81
	runs_at b
	run move
	assert_status 0
}

@test "two at a time: the second is told to try again" {
	small_guest off
	at checkpoint 'until [ -e "$here/go" ]; do sleep 0.1; done'
	move --quiet >/dev/null 3>&- &
	wait_for happened
	run move
	: >"$scene/bin/go"
	assert_status 75
	assert_output_has 'another'
	wait
}

@test "a move to one place stands in the way of one to another" {
	small_guest
	at copied "kill -TERM \$pipeline"
	run move
	assert_status 75
	mkdir "$scene/b/srv/other"
	run pipeline --network=blue=green guest "hostb:$scene/b/srv/other"
	assert_status 78
	assert_output_has 'not over'
}

@test "the journal, the state and the document are for their owner only" {
	small_guest
	at yielding "find \"$scene/a/var\" \"$dest/guest\" -perm /077 ! -type l ! -path '*.tmp/*' ! -path '*/vms' ! -path '*/vms/*' ! -path \"$scene/a/var\" >\"$scene/open\"; cp -p \"$dest/guest/.qsm/state\" \"$scene/state\""
	run move
	assert_status 0
	happened
	[ -s "$scene/state" ]
	[ ! -s "$scene/open" ] || fail "others may look at: $(cat "$scene/open")"
	[ ! -e "$dest/guest/.qsm" ]
}
