# SPDX-License-Identifier: BSD-2-Clause
# The examples of the manual pages and of README.md, taken from there and run as they are written.
load helper

setup() {
	scene_tools=$top/tests/lab
	scene=$BATS_TEST_TMPDIR/lab
	# shellcheck source=/dev/null
	. "$scene_tools/scene.sh"
	mkdir "$BATS_TEST_TMPDIR/here"
	cd "$BATS_TEST_TMPDIR/here" || return
}

teardown() {
	scene_down
}

# Every literal block of a page's examples (of all of qsm(7)), as NUMBER<TAB>LINE, without mdoc's escapes.
blocks() { # PAGE
	awk -v all="$([ "$1" = qsm.7 ] && echo 1)" '
		/^\.Sh / { on = all || $2 == "EXAMPLES" }
		!on { next }
		/^\.Bd / { n++; inside = 1; next }
		/^\.Ed/ { inside = 0; next }
		/^\.Dl / { n++; sub(/^\.Dl /, ""); print n "\t" $0; next }
		inside { print n "\t" $0 }' "$top/man/$1" | sed 's/\\(dq/"/g; s/\\&//g; s/\\e/\\/g'
}

# The commands of block N: what follows a prompt, with the lines that go on with it.
example() { # PAGE N
	local commands
	commands=$(blocks "$1" | awk -F'\t' -v n="$2" '
		$1 != n { next }
		{ sub(/^[0-9]+\t/, "") }
		/^[$#] / { sub(/^[$#] /, ""); on = 1; print; more = /[\\|]$/; next }
		on && more { print; more = /[\\|]$/; next }')
	[ -n "$commands" ] || fail "$1 has no example $2" || return
	printf '%s\n' "$commands"
}

# Runs them here; every command counts, also in the middle of a pipe.
try() { # PAGE N
	example "$1" "$2" >script || return
	echo "--- $1 $2" && cat script
	bash -e -o pipefail script
}

# The same as root of host A, in /srv.
try_at_a() { # PAGE N
	example "$1" "$2" >"$scene/script" || return
	echo "--- $1 $2" && cat "$scene/script"
	at_a "$(cat "$scene/script")"
}

at_a() { # TEXT
	scene_hosts exec a bash -e -o pipefail -c "cd /srv
$1"
}

# For at_a: the servers of disks end.
gone='pkill -x nbdkit; while pgrep -x nbdkit >/dev/null; do sleep 0.1; done'

at_b() { # TEXT
	scene_hosts exec b bash -e -o pipefail -c "cd /srv
$1"
}

# Two hosts; the second has all the names that the pages give to another host.
two_hosts() {
	needs_root
	scene_up
	{
		printf 'Host host host-b backup\n\tHostKeyAlias hostb\n'
		sed -n '/^Host hostb/,$s/^\tHostName/&/p' "$scene/a/root/.ssh/config"
	} >>"$scene/a/root/.ssh/config"
	for h in a b; do
		for n in br0 br1 lan; do
			echo user >"$scene/$h/etc/networks/$n"
		done
	done
}

# A disk with content, and an AVHD with some more on it.
disk_and_child() { # DIR
	head -c 1M /dev/urandom >"$1/content"
	vhd-convert --quiet --from=raw --type=dynamic "$1/content" "$1/disk.vhd"
	vhd-snap --quiet --output="$1/disk.avhd" "$1/disk.vhd" >/dev/null
}

# A machine without an operating system that runs on host A, on the disks that are named.
machine() { # NAME NETWORK DISK…
	at_a "
		n=0
		for d in ${*:3}; do
			head -c 1M /dev/urandom >content
			[ -e \$d ] || vhd-convert --quiet --from=raw --type=dynamic content \$d
		done
		hv-qemu adopt --dry-run --name=$1 --memory=32M ${*:3} |
			sed 's,<interface type=\"user\">,<interface type=\"network\"><source network=\"$2\"/>,' >$1.xml
		hv-qemu --quiet define $1.xml
		hv-qemu --quiet start $1"
}

same() { # FILE FILE, of the hosts: as their guests see them
	[ "$(vhd-sum "$1" | cut -d' ' -f1)" = "$(vhd-sum "$2" | cut -d' ' -f1)" ] || fail "$1 is not $2"
}

@test "vhd-create(1), vhd-info(1), vhd-stream(5)" {
	try vhd-create.1 1
	try vhd-create.1 2
	[ -f ./-boot.vhd ]
	rm disk.vhd
	disk_and_child .
	mkdir -p "$BATS_TEST_TMPDIR/templates"
	try vhd-info.1 1
	run try vhd-info.1 2
	assert_output_has 1048576
	example vhd-info.1 3 | sed "s,/srv/templates,$BATS_TEST_TMPDIR/templates," | bash -e
	run try vhd-stream.5 1
	assert_status 0
	assert_output_has "$(blocks vhd-stream.5 | tail -n 1 | cut -f2)"
}

@test "vhd-merge(1)" {
	disk_and_child .
	try vhd-merge.1 1
	run try vhd-merge.1 2
	assert_status 0
	[ "$(grep -o '^[0-9a-f]\{32\}' <<<"$output" | sort -u | wc -l)" -eq 1 ]
	[ ! -e disk.avhd ]
	for i in 1 2 3; do
		vhd-snap --quiet --output=disk-$i.avhd "$([ $i = 1 ] && echo disk.vhd || echo disk-$((i - 1)).avhd)" >/dev/null
	done
	try vhd-merge.1 4
	same copy.vhd disk.vhd
	try vhd-merge.1 3
	[ "$(echo disk-*)" = 'disk-*' ]
}

@test "vhd-convert(1), vhd-sum(1)" {
	disk_and_child .
	rm disk.vhd disk.avhd
	cp content disk.img
	try vhd-convert.1 1
	vhd-snap --quiet --output=disk.avhd disk.vhd
	run try vhd-convert.1 2
	assert_output_has "$(sha256sum <disk.img | cut -d' ' -f1)"
	try vhd-convert.1 3
	try vhd-sum.1 1
}

@test "vhd-check(1), vhd-reparent(1), vhd-resize(1)" {
	disk_and_child .
	example vhd-check.1 1 | sed "s,/srv/templates,$PWD," | bash -e
	try vhd-check.1 2
	try vhd-check.1 3 || [ $? -eq 66 ] # nothing was mended, nothing to take back
	mkdir base
	mv disk.vhd base/
	try vhd-reparent.1 1
	rm -r base disk.avhd
	disk_and_child .
	try vhd-reparent.1 2
	rm ./*.vhd ./*.avhd
	vhd-create --quiet --size=10G disk.vhd
	try vhd-resize.1 1
	try vhd-resize.1 2
}

@test "vhd-send(1) and vhd-recv(1), to another host and here" {
	two_hosts
	for d in a b; do
		disk_and_child "$scene/$d/srv"
	done
	rm "$scene/b/srv/disk.vhd" "$scene/b/srv/disk.avhd"
	try_at_a vhd-send.1 1
	same "$scene/a/srv/disk.vhd" "$scene/b/srv/disk.vhd"
	rm "$scene/b/srv/disk.vhd"
	try_at_a vhd-send.1 2
	same "$scene/a/srv/disk.vhd" "$scene/b/srv/disk.vhd"
	rm "$scene/b/srv/disk.vhd"
	# So slow that it still runs when the rate is changed; and it has begun then.
	{
		example vhd-send.1 3 | sed 's/200M/200K/; $d'
		# shellcheck disable=SC2016
		echo 'until p=$(pgrep -x vhd-send) && mask=$(sed -n "s/^SigCgt:[[:space:]]*//p" "/proc/$p/status") &&
			[ $((0x$mask & 1)) -ne 0 ]; do sleep 0.1; done'
		example vhd-send.1 3 | sed -n '$p'
		# shellcheck disable=SC2016
		echo 'wait $!'
	} >"$scene/script"
	at_a "$(cat "$scene/script")"
	same "$scene/a/srv/disk.vhd" "$scene/b/srv/disk.vhd"
	try_at_a vhd-send.1 4
	try_at_a vhd-send.1 5
	same "$scene/a/srv/disk.avhd" "$scene/b/srv/disk.avhd"
	try_at_a vhd-send.1 7
	same "$scene/a/srv/disk.vhd" "$scene/a/srv/copy.vhd"
	# The other host has an older copy.
	rm "$scene/b/srv/disk.avhd"
	python3 "$top/tests/model/vhdmodel.py" write "$scene/a/srv/disk.avhd" --fill=5:4K
	vhd-merge --quiet --delete "$scene/a/srv/disk.avhd"
	try_at_a vhd-send.1 6
	same "$scene/a/srv/disk.vhd" "$scene/b/srv/disk.vhd"
	rm "$scene"/a/srv/disk.*vhd "$scene/a/srv/copy.vhd"
	cp "$scene/a/srv/content" "$scene/a/srv/disk.img"
	try_at_a vhd-send.1 8
	rm "$scene"/a/srv/disk.*
	try_at_a vhd-recv.1 1
	same "$scene/a/srv/disk.vhd" "$scene/b/srv/disk.vhd"
	at_a 'vhd-snap --quiet --output=disk.avhd disk.vhd >child; mkdir copy'
	python3 "$top/tests/model/vhdmodel.py" write "$scene/a/srv/disk.avhd" --fill=5:4K
	try_at_a vhd-recv.1 2
	same "$scene/a/srv/disk.avhd" "$scene/a/srv/copy/disk.vhd"
	try_at_a vhd-recv.1 3
	same "$scene/a/srv/disk.avhd" "$scene/b/srv/disk.vhd"
	try_at_a vhd-recv.1 4
	vhd-convert --quiet --type=raw "$scene/a/srv/disk.avhd" - | cmp - "$scene/a/srv/disk.img"
	try_at_a vhd-recv.1 5
}

@test "vhd-stream(1): a backup that was cut" {
	head -c 16M /dev/urandom >content
	vhd-convert --quiet --from=raw --type=dynamic content disk.vhd
	# After five seconds it has a checkpoint, to go on from.
	vhd-send --quiet --rate-limit=2M disk.vhd 2>err | head -c 14M >disk.stream
	try vhd-stream.1 1
	try vhd-stream.1 2
	vhd-recv --quiet copy.vhd <disk.stream
	same disk.vhd copy.vhd
}

@test "README.md's pipes" {
	two_hosts
	disk_and_child "$scene/a/srv"
	rm "$scene/a/srv/disk.avhd"
	awk '/^## In pipes/ { on = 1; next } /^## / { on = 0 } on && sub(/^    /, "") { print } on && /^$/ { print "" }' \
		"$top/README.md" | awk '/what does a Hyper-V/ { exit } { print }' >"$scene/script"
	grep -q vhd-merge "$scene/script"
	run at_a "$(cat "$scene/script")"
	echo "$output"
	assert_status 0
	[ "$(grep -o '^[0-9a-f]\{32\}  ' <<<"$output" | tail -n 2 | sort -u | wc -l)" -eq 1 ]
	grep -qF 'qsm-pipeline.sh --network=br0=br1 web1 root@host-b:/srv/vms' "$top/README.md"
}

@test "hv-qemu(1): a machine of disks that lie there, put aside, and its state sent to another host" {
	two_hosts
	at_a 'vhd-create -q --size=8M vda.vhd; vhd-create -q --size=8M vdb.vhd'
	run try_at_a hv-qemu.1 1
	echo "$output"
	assert_status 0
	assert_output_has 'vdb /srv/vdb.vhd'
	try_at_a hv-qemu.1 2
	try_at_a hv-qemu.1 3
	try_at_a hv-qemu.1 4
	[ "$(jq -r .bytes "$scene/a/srv/receipt")" = "$(stat -c %s "$scene/b/root/guest.state")" ]
}

@test "vhd-snap(1): at rest, of a running machine, and copied meanwhile" {
	two_hosts
	disk_and_child "$scene/a/srv"
	rm "$scene/a/srv/disk.avhd"
	try_at_a vhd-snap.1 1
	at_a 'rm disk*.avhd'
	machine guest lan vda.vhd vdb.vhd
	uuid=$(scene_state a .uuid)
	example vhd-snap.1 2 >"$scene/script"
	sed -n p "$scene/script"
	at_a "uuid=$uuid; $(cat "$scene/script")"
	[ "$(scene_state a '[.disks[].leaf] | map(select(endswith("avhd"))) | length')" = 2 ]
	at_a 'hv-qemu -q stop -f guest; ln -s disk.vhd vda; nbdkit -U vda.nbd "$QSM_PLUGIN" file=vda control=vda.ctl; until [ -S vda.ctl ]; do sleep 0.1; done'
	example vhd-snap.1 3 | sed '$d' >"$scene/script"
	at_a "$(cat "$scene/script"); echo \"\$child\" >child"
	same "$scene/a/srv/disk.vhd" "$scene/b/root/copy.vhd"
	# At rest, as it says.
	at_a "$gone; child=\$(cat child); $(example vhd-snap.1 3 | tail -n 1)"
}

@test "vm-export(1) and vm-import(1)" {
	two_hosts
	command -v xmllint >/dev/null || skip "needs xmllint"
	machine guest lan vda.vhd
	run try_at_a vm-export.1 1
	assert_status 0
	assert_output_has allocated=
	try_at_a vm-export.1 2
	run try_at_a vm-export.1 3
	assert_status 78
	assert_output_has 'no --disk=vda=FILE given'
	at_a 'hv-qemu -q stop -f guest'
	mkdir "$scene/b/srv/copy"
	try_at_a vm-import.1 1
	[ "$(scene_hosts exec b hv-qemu list)" = copy ]
	at_a 'hv-qemu -q undefine guest; vhd-create -q --size=1M other.vhd; rm -f /etc/qsm/networks/zz'
	run try_at_a vm-import.1 2
	assert_output_has 'is another disk'
	assert_output_has 'network zz does not exist here'
}

@test "qsm-pipeline(1): a plan, a move, a rate, a report" {
	two_hosts
	mkdir "$scene/b/srv/vms" "$scene/a/srv/ssd"
	machine web1 br0 web1.vhd
	run try_at_a qsm-pipeline.1 1
	echo "$output"
	assert_status 0
	assert_output_has 'can move to'
	try_at_a qsm-pipeline.1 3
	[ "$(scene_hosts exec a hv-qemu status --json web1 | jq -r .disks[0].leaf)" = /srv/ssd/web1/vda.vhd ]
	try_at_a qsm-pipeline.1 2
	[ "$(scene_hosts exec b hv-qemu status web1)" = running ]
}

@test "qsm-pipeline(1): another user there, with sudo; and how long was it offline" {
	command -v sudo >/dev/null || skip "needs sudo"
	two_hosts
	mkdir "$scene/b/srv/vms"
	machine web1 br0 web1.vhd
	a_user_with_sudo move
	try_at_a qsm-pipeline.1 4
	[ "$(scene_hosts exec b hv-qemu status web1)" = running ]
	at_b 'hv-qemu -q stop -f web1; hv-qemu -q undefine web1; rm -r vms/web1'
	at_a 'hv-qemu -q undefine web1; rm web1*vhd'
	machine web1 br0 web1.vhd
	run try_at_a qsm-pipeline.1 5
	assert_status 0
	[[ ${lines[-1]} =~ ^[0-9.]+$ ]]
}

# On host B, where nobody but root has an account for us; its sudo keeps the PATH and the plugin of the tests.
a_user_with_sudo() { # NAME
	cp /etc/passwd /etc/shadow /etc/group "$scene"
	echo "$1:x:20000:20000::/tmp:/bin/sh" >>"$scene/passwd"
	echo "$1:*:19000:0:99999:7:::" >>"$scene/shadow"
	echo "$1:x:20000:" >>"$scene/group"
	printf '%s\n' 'Defaults !env_reset, !secure_path' 'root ALL=(ALL) ALL' "$1 ALL=(ALL) NOPASSWD: ALL" >"$scene/sudoers"
	chmod 440 "$scene/sudoers"
	# sshd reads the keys as that user.
	for d in "$scene"/b/root/.ssh "$scene"/b/root "$scene"/b "$scene" "$BATS_TEST_TMPDIR" "${BATS_TEST_TMPDIR%/*}" "$BATS_RUN_TMPDIR"; do
		chmod a+x "$d"
	done
	at_b "for f in passwd shadow group sudoers; do mount --bind $scene/\$f /etc/\$f; done"
	scene_hosts exec a ssh -o BatchMode=yes "$1@host-b" 'sudo -n id -u' | grep -qx 0
}

@test "--remote-path: the tools lie elsewhere there" {
	two_hosts
	mkdir -p "$scene/b/srv/vms" "$scene/b/srv/tools"
	machine web1 br0 web1.vhd
	for t in "$QSM_BUILD"/src/v?-* "$QSM_BUILD"/src/vhd-* "$top"/scripts/hv-*; do
		[ ! -x "$t" ] || ln -s "$t" "$scene/b/srv/tools/"
	done
	# A PATH there in which they are not.
	printf '#!/bin/sh\nhost=$1\nshift\nexec ssh "$host" "PATH=/usr/bin:/bin:/usr/sbin:/sbin; $*"\n' >"$scene/a/srv/link"
	chmod +x "$scene/a/srv/link"
	run at_a 'qsm-pipeline.sh --ssh=/srv/link web1 root@host-b:/srv/vms'
	assert_status 78
	assert_output_has 'vhd-recv is not there'
	run at_a 'qsm-pipeline.sh --ssh=/srv/link --remote-path=/srv/tools web1 root@host-b:/srv/vms'
	echo "$output"
	assert_status 0
	[ "$(scene_hosts exec b hv-qemu status web1)" = running ]
}

@test "qsm(7): one move by hand" {
	two_hosts
	mkdir "$scene/b/srv/vms"
	machine web1 br0 vda.vhd
	R=/run/qsm/$(scene_hosts exec a hv-qemu status --json web1 | jq -r .uuid)
	blocks qsm.7 | sed -n 's/^2\t//p' >"$scene/script"
	cat "$scene/script"
	grep -q '^hv-qemu yield' "$scene/script"
	printf '#!/bin/sh\n' >"$scene/b/srv/x"
	at_a "R=$R
$(cat "$scene/script")"
	[ "$(scene_hosts exec b hv-qemu status web1)" = running ]
	[ "$(scene_hosts exec a hv-qemu status web1)" = off ]
	run scene_hosts exec a hv-qemu start web1
	assert_status 77
}

@test "qsm(7): single tools in pipes" {
	two_hosts
	head -c 1M /dev/urandom >"$scene/a/srv/content"
	at_a 'vhd-convert -q --from=raw --type=dynamic content d.vhd'
	try_at_a qsm.7 3
	same "$scene/a/srv/d.vhd" "$scene/b/srv/d.vhd"
	try_at_a qsm.7 4
	same "$scene/a/srv/d.vhd" "$scene/a/srv/restored.vhd"
	mkdir "$scene/b/srv/backup" "$scene/a/srv/web2"
	at_a 'vhd-snap -q --output=monday.avhd d.vhd; vhd-send d.vhd | vhd-recv -q /srv/d2.vhd' >/dev/null
	at_a 'vhd-send monday.avhd | ssh backup vhd-recv -q /srv/backup/monday.avhd; ln -s monday.avhd vda
		nbdkit -U vda.nbd "$QSM_PLUGIN" file=vda control=vda.ctl; until [ -S vda.ctl ]; do sleep 0.1; done' >/dev/null
	example qsm.7 5 | sed -n 1p >"$scene/script"
	at_a "$(cat "$scene/script"); [ -f \"\$new\" ]; $gone; mv \"\$new\" tuesday.avhd"
	at_a "$(example qsm.7 5 | sed 1d)"
	same "$scene/a/srv/tuesday.avhd" "$scene/b/srv/backup/tuesday.avhd"
	at_a 'cp d.vhd a.vhd; vhd-snap -q --output=b.avhd a.vhd; cp content disk.raw; vhd-snap -q --output=d.avhd d.vhd' >/dev/null
	try_at_a qsm.7 6
	try_at_a qsm.7 7
	[ "$(scene_hosts exec a hv-qemu status web2)" = running ]
	at_a 'hv-qemu -q stop -f web2'
	if command -v nbdcopy >/dev/null; then
		at_a "$(example qsm.7 8 | sed "s,nbdkit --readonly vhd,nbdkit --readonly $QSM_PLUGIN,")"
		cmp "$scene/a/srv/d.raw" "$scene/a/srv/content"
	fi
}

@test "qsm(7): where does it stand" {
	two_hosts
	mkdir "$scene/b/srv/vms"
	machine web1 br0 web1.vhd
	at_a 'qsm-pipeline.sh --quiet web1 host-b:/srv/vms' >/dev/null
	run try_at_a qsm.7 9
	echo "$output"
	assert_status 0
	assert_output_has '"owner": "moved"'
	assert_output_has finished
}

@test "qsm(7): a broken chain" {
	disk_and_child .
	mkdir base && mv disk.vhd base
	dd if=/dev/zero of=disk.avhd bs=512 count=1 conv=notrunc status=none
	run try qsm.7 10
	assert_status 65
	try qsm.7 11
	example qsm.7 10 | sed -n 1p | bash -e
	example qsm.7 10 | sed -n 2p | bash -e
	same whole.vhd base/disk.vhd
}

@test "qsm(7): a disk that no tool opens" {
	disk_and_child .
	mkdir srv
	cp disk.vhd srv
	mkfifo pipe
	{ vhd-send --from=disk.vhd disk.avhd 2>/dev/null | head -c 400; exec sleep 600; } >pipe 3>&- &
	local sender=$! receiver
	vhd-recv --onto srv/disk.vhd <pipe 3>&- &
	receiver=$!
	wait_for test -e srv/disk.vhd.merging
	kill -KILL $receiver $sender
	wait $receiver $sender || :
	run vhd-info srv/disk.vhd
	assert_status 75
	run bash -ec "$(example qsm.7 12 | sed 's,/srv/,srv/,')"
	assert_status 0
	assert_output_has 'no tool opens it'
	vhd-info srv/disk.vhd
}

@test "no page has an example that is not here" {
	for p in "$top"/man/*.[157]; do
		p=${p##*/}
		n=$(blocks "$p" | tail -n 1 | cut -f1)
		for i in $(seq 1 "${n:-0}"); do
			case "$p $i" in
			# Pictures; blocks that are taken in another way; what needs a volume; what plugin.bats runs.
			'qsm.7 1' | 'qsm.7 2' | 'vhd-convert.1 4') continue ;;
			nbdkit-vhd-plugin.1*) continue ;;
			esac
			grep -Eq "(try|try_at_a|example) ${p//./\\.} $i( |\$|\))" "$BATS_TEST_FILENAME" || fail "$p: example $i is not run"
		done
	done
}
