# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=sh
#
# The stages of qsm-pipeline.sh, in the order in which they happen, and the report. What fails
# before the commit ends in rollback or resumable, what fails after it in doubt; none of these
# returns. Sourced by qsm-pipeline.sh: most variables here are its own.
# shellcheck disable=SC2034,SC2154

# ---- stages, as they are reported ----

begin_stage() { # NAME
	stage=$1
	clock
	stage_from=$now
}
stage=''

end_stage() { # BYTES
	clock
	took "$stage" "$1" $((now - stage_from))
}

took() { # STAGE BYTES HUNDREDTHS
	note stage "$@"
	j_stages="$j_stages$*$NL"
	if [ "$2" -gt 0 ]; then
		say "$1: $(human "$2") in $(seconds "$3") s"
	else
		say "$1: $(seconds "$3") s"
	fi
}

# ---- preflight ----

block() { # TEXT
	printf '%s\n' "$1" >>"$tmp/blockers"
}

preflight() {
	begin_stage preflight
	: >"$tmp/blockers"
	preflight_tools
	preflight_vm
	plan_bytes=0
	n=0
	: >"$tmp/disks"
	while [ "$n" -lt "$v_ndisks" ]; do
		preflight_disk "$n"
		n=$((n + 1))
	done
	growth=$((plan_bytes / 16 + 67108864))
	case $v_state in
	running | paused) state_bytes=$v_memory ;;
	*) state_bytes=$v_saved ;;
	esac
	other_job
	preflight_far
}

preflight_tools() {
	for d in vhd-snap vhd-send vhd-sum vhd-info vm-export jq flock sync awk df od cksum \
		"hv-$opt_hypervisor"; do
		command -v "$d" >/dev/null 2>&1 || block "$d is not there"
	done
	[ -n "$far_local" ] || command -v "${opt_ssh%% *}" >/dev/null 2>&1 ||
		block "${opt_ssh%% *} is not there"
}

preflight_vm() {
	case $v_owner in
	owner) ;;
	moved) block "$opt_vm has moved away: it is no longer this host's" ;;
	*) block "$opt_vm cannot be moved: its ownership record is \"$v_owner\"" ;;
	esac
	case $v_state in
	running | paused | saved | off) ;;
	handed-over) block "$opt_vm stands still since its state was written to a file: resume it, or stop it, first" ;;
	*) block "$opt_vm is $v_state${v_reason:+ ($v_reason)}: start it, or stop it, first" ;;
	esac
	[ "$v_ndisks" -gt 0 ] || block "$opt_vm has no disk"
}

# Sound, a VHD, served, and with room beside it for what will be written meanwhile.
preflight_disk() { # INDEX
	eval "target=\$v_$1_target leaf=\$v_$1_leaf serving=\$v_$1_serving"
	vhd-info --json --chain --unlocked -- "$leaf" >"$tmp/info" 2>"$tmp/error" || {
		block "disk $target: $(head -n 1 "$tmp/error" | sed 's/^vhd-info: //')"
		return
	}
	jq -r '.files[0] | [.size, ([.size, ([.chain[].allocated] | add)] | min), .format, .warning // "-"] | @tsv' \
		"$tmp/info" >"$tmp/line"
	IFS='	' read -r _ disk_bytes format warning <"$tmp/line"
	plan_bytes=$((plan_bytes + disk_bytes + 1048576))
	jq -c --arg t "$target" '{target: $t, leaf: .files[0].file, size: .files[0].size,
		layers: (.files[0].chain | length), bytes: $b}' --argjson b "$disk_bytes" "$tmp/info" >>"$tmp/disks"
	[ "$format" = vhd ] || block "disk $target: $leaf is $format; vhd-convert makes a VHD of it"
	[ "$warning" = - ] || block "disk $target: $leaf: $warning"
	case $v_state in
	running | paused) ;;
	*) return ;;
	esac
	[ "$serving" = true ] ||
		block "disk $target: its server died ('hv-$opt_hypervisor repair' restarts it)"
	free=$(space "${leaf%/*}")
	[ "${free:-$opt_reserve}" -ge "$opt_reserve" ] ||
		block "disk $target: ${leaf%/*} has $(human "$free") free, less than the reserve of $(human "$opt_reserve")"
	[ -w "${leaf%/*}" ] ||
		block "disk $target: ${leaf%/*} is not writable: no checkpoint can be made there"
}

space() { # DIR: free bytes there
	df -Pk -- "$1" 2>/dev/null |
		awk 'NR > 1 { for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+%$/) { printf "%.0f\n", $(i - 1) * 1024; exit } }'
}

preflight_far() {
	vm-export --hypervisor="$opt_hypervisor" -- "$opt_vm" >"$tmp/vm.xml" ||
		block "vm-export cannot describe $opt_vm"
	{
		eval "far_call d_preflight $VERSION $((plan_bytes + growth + state_bytes)) $opt_networks"
		cat -- "$tmp/vm.xml"
	} | {
		far_run >"$tmp/far" 2>"$tmp/error"
		echo $? >"$tmp/status"
	}
	read -r d <"$tmp/status"
	far_version='' far_clock='' far_free='' word=''
	read -r word <"$tmp/far" || :
	[ "$d" -ne 0 ] || [ "$word" = qsm-pipeline ] ||
		block "$far_host: its login shell prints something of its own (\"$word\"): the data would be mixed with it"
	while read -r word rest; do
		case $word in
		blocker) block "$rest" ;;
		version) far_version=$rest ;;
		clock) number "$rest" && far_clock=$rest ;;
		free) number "$rest" && far_free=$rest ;;
		esac
	done <"$tmp/far"
	if cut_off "$d"; then
		block "$far_host cannot be reached (status $d): $(head -n 1 "$tmp/error")"
	elif [ "$d" -ne 0 ]; then
		block "$far_host: the check failed with status $d: $(head -n 1 "$tmp/error")"
	fi
	skew=0
	[ -z "$far_clock" ] || skew=$((far_clock - $(date +%s)))
	case $skew in
	[0-9] | -[0-9]) ;;
	*) warn "the clocks differ by $skew s" ;;
	esac
}

# How long the guest will stand still, in hundredths of a second; nothing where that cannot be told.
# The link is measured with a little data, the guest with what it writes in a second. It stands
# still while its memory and what it will have written during the copy are sent, and loaded and
# merged there (400 MiB a second is a modest guess), and for a few calls and the start of a QEMU.
predict() {
	predicted='' predict_delta=0 predict_rate=0
	[ ! -s "$tmp/blockers" ] || return 0
	if [ "$v_state" != running ]; then
		predicted=0
		return
	fi
	clock
	predict_from=$now predict_wrote=$v_written
	probe 0 || return 0
	predict_call=$probe_time
	probe 2097152 || return 0
	[ "$probe_time" -ge $((predict_call + 20)) ] || probe 33554432 || return 0
	predict_rate=$((probe_bytes * 100 / (probe_time > predict_call ? probe_time - predict_call : 1)))
	clock
	[ $((now - predict_from)) -ge 100 ] || pause_for 1
	status || return 0
	clock
	predict_writes=$(((v_written - predict_wrote) * 100 / (now - predict_from)))
	predict_copy=$predict_rate
	if rate_of "${opt_rate#*=}" && [ "$rate" -gt 0 ] && [ "$rate" -lt "$predict_copy" ]; then
		predict_copy=$rate
	fi
	[ "$predict_copy" -gt 0 ] || return 0
	predict_time=$((plan_bytes * 100 / predict_copy))
	predict_delta=$((predict_time * predict_writes / 100))
	# What is written twice is sent once.
	[ "$predict_delta" -le "$plan_bytes" ] || predict_delta=$plan_bytes
	predicted=$((v_resident + predict_delta))
	predicted=$((predicted * 100 / predict_rate + predicted / 4194304 + 4 * predict_call + 50))
}
predicted='' predict_delta=0 predict_rate=0

# Sets probe_time: how long BYTES took to the destination, with a call.
probe() { # BYTES
	head -c "$1" /dev/urandom >"$tmp/probe" && far_call d_probe >"$tmp/probe.call" || return
	clock
	probe_from=$now
	probe_bytes=$(cat -- "$tmp/probe.call" "$tmp/probe" | far_run) && number "$probe_bytes" || return
	clock
	probe_time=$((now - probe_from))
	rm -f -- "$tmp/probe"
}

number() { # TEXT
	case $1 in
	'' | *[!0-9]* | ????????????????????*) return 1 ;;
	esac
}

plan_json() {
	jq -n --rawfile b "$tmp/blockers" --slurpfile d "$tmp/disks" --arg vm "$opt_vm" --arg uuid "$v_uuid" \
		--arg state "$v_state" --arg dest "$dest" --argjson bytes "$plan_bytes" \
		--argjson memory "$v_memory" --arg free "$far_free" --arg version "$far_version" \
		--argjson skew "$skew" --arg predicted "$predicted" --argjson rate "$predict_rate" \
		--argjson delta "$predict_delta" --argjson state_bytes "$([ "$v_state" = running ] && echo "$v_resident" || echo "$state_bytes")" '
		($b | split("\n")[:-1]) as $b
		| {version: 1, plan: true, ok: ($b == []), vm: $vm, uuid: $uuid, state: $state, destination: $dest,
		   blockers: $b, disks: $d, bytes: $bytes, memory: $memory,
		   destination_free: (if $free == "" then null else $free | tonumber end),
		   destination_version: (if $version == "" then null else $version end), clock_skew: $skew,
		   predicted_offline_seconds: (if $predicted == "" then null else ($predicted | tonumber) / 100 end),
		   state_bytes: $state_bytes, delta_bytes: $delta,
		   link_rate: (if $rate == 0 then null else $rate end)}'
}

# Everything that stands in the way, in one go.
refuse() {
	if [ -n "$opt_json" ]; then
		plan_json
		opt_json=''
	fi
	while IFS= read -r line; do
		warn "$line"
	done <"$tmp/blockers"
	die 78 "$opt_vm is not moved; nothing was changed, it is $v_state here"
}

show_plan() {
	[ ! -s "$tmp/blockers" ] || refuse
	if [ -n "$opt_json" ]; then
		plan_json
	else
		printf '%s (%s), %s, can move to %s\n' "$opt_vm" "$v_uuid" "$v_state" "$dest"
		jq -r '"disk \(.target): \(.leaf), \(.size) bytes, at most \(.bytes) to copy"' "$tmp/disks"
		printf 'free there: %s, needed: %s\n' "$(human "${far_free:-0}")" \
			"$(human $((plan_bytes + growth + state_bytes)))"
		if [ -z "$predicted" ]; then
			printf 'how long it will be offline cannot be told\n'
		elif [ "$v_state" = running ]; then
			printf 'predicted_offline_seconds=%s: %s of memory, %s written during the copy, at %s/s\n' \
				"$(seconds "$predicted")" "$(human "$v_resident")" "$(human "$predict_delta")" "$(human "$predict_rate")"
		fi
	fi
	exit 0
}

# ---- checkpoint ----

# From here on the disks of the job are frozen and an AVHD each takes what is written. A disk that
# an earlier, interrupted run switched already is left as it is.
checkpoint() {
	[ -z "$j_checkpoint" ] || return 0
	begin_stage checkpoint
	if ! stood_still; then
		snapshot base || rollback "the checkpoint could not be made"
	elif [ "$a_was" = saved ]; then
		# What an interrupted save left running has locked the disks.
		hv flush -- "$opt_vm" || rollback "$opt_vm is $v_state, and a process of it does not end"
	fi
	must_status
	note checkpoint
	end_stage 0
}

# Nobody wrote when the move began, and nobody has since, as long as it was not started.
stood_still() {
	case $a_was in
	off | saved) ;;
	*) return 1 ;;
	esac
}

# An empty AVHD on each disk (only on those that still stand on their base), live, all or none. The
# paths of the AVHDs are in top_INDEX afterwards.
snapshot() { # [base]
	set -- "${1:-}"
	n=0
	while [ "$n" -lt "$a_ndisks" ]; do
		disk "$n"
		n=$((n + 1))
		[ -z "$1" ] || [ "$leaf" = "$base" ] || continue
		set -- "$@" --live="$leaf=$control"
	done
	shift
	[ $# -gt 0 ] || return 0
	vhd-snap --quiet --json "$@" >"$tmp/snap" || return
	eval "$(jq -r '.snapshots | to_entries[] | "top_\(.key)=\(.value.child | @sh)"' "$tmp/snap")"
}

# ---- copy ----

# One disk to the other side, in the background: child is its process. The statuses of both ends and
# the receipts are in files X.*, for judge_send.
send_disk() { # X FUNCTION TARGET VHD-SEND'S ARGUMENTS…
	rm -f -- "$tmp/$1".*
	far_call "$2" "$3" >"$tmp/$1.call" || die 74 "cannot write $tmp/$1.call"
	send_x=$tmp/$1
	shift 3
	send_parts "$@" 8>&- &
	child=$!
}
child=''

send_parts() {
	{
		cat -- "$send_x.call"
		# shellcheck disable=SC2086
		vhd-send $opt_progress ${opt_quiet:+--quiet} $opt_compress --receipt="$send_x.sent" "$@" &
		echo $! >"$send_x.pid"
		# An interrupt that came before it could be found.
		{ [ -z "$interrupted" ] && [ ! -e "$tmp/interrupted" ]; } || kill $!
		remember_child $!
		wait $!
		echo $? >"$send_x.status"
		rm -f -- "$send_x.pid"
	} | {
		far_run >"$send_x.got"
		echo $? >"$send_x.far"
	}
	clock
	echo "$now" >"$send_x.end"
}

stop_sending() {
	for d in "$tmp"/*.pid; do
		[ -s "$d" ] || continue
		read -r d <"$d"
		kill "$d" 2>/dev/null || :
	done
}

# 0 sent, verified and equal; 1 the link was cut; 2 the other side has no room; 3 the source's
# reserve is reached; 4 interrupted; 5 another failure, named in failure.
judge_send() { # X
	failure=''
	read -r send_status <"$tmp/$1.status" || send_status=70
	read -r far_status <"$tmp/$1.far" || far_status=255
	[ -z "$interrupted" ] || return 4
	[ ! -e "$tmp/full" ] || return 3
	if [ "$send_status" -eq 0 ] && [ "$far_status" -eq 0 ]; then
		same_receipts "$tmp/$1" && return 0
		failure="disk $target: what arrived is not what was sent"
		return 5
	fi
	if cut_off "$far_status" || [ "$far_status" -eq 75 ]; then
		failure="$far_host is not reached (status $far_status)"
		return 1
	elif [ "$far_status" -eq 73 ]; then
		failure="disk $target: $far_host cannot write it: no space, or no permission"
		return 2
	elif [ "$send_status" -ne 0 ] && { [ "$far_status" -eq 76 ] || [ "$far_status" -eq 0 ]; }; then
		failure="disk $target cannot be read (vhd-send ended with status $send_status)"
		return 5
	fi
	failure="disk $target: $far_host failed with status $far_status"
	return 5
}

# The sums of the stream at both ends, and of the content, where both know it.
same_receipts() { # FILE
	[ -s "$1.sent" ] && [ -s "$1.got" ] || return 1
	jq -es '.[0].stream_sum != null and .[0].stream_sum == .[1].stream_sum and .[0].size == .[1].size
		and (.[0].content_sum == null or .[1].content_sum == null or .[0].content_sum == .[1].content_sum)' \
		"$1.sent" "$1.got" >/dev/null || return 1
	sent=$(jq -s '.[0].bytes' "$1.got")
}
sent=0

copy() {
	begin_stage copy
	far_insist d_prepare || {
		d=$?
		if cut_off "$d" || [ "$d" -eq 75 ] || [ -n "$interrupted" ]; then
			resumable "$far_host does not answer (status $d)"
		fi
		rollback "$far_host cannot take the disks (status $d)"
	}
	watch_space
	total=0
	i=0
	while [ "$i" -lt "$a_ndisks" ]; do
		disk "$i"
		case $j_copied in
		*" $target "*) ;;
		*) copy_disk ;;
		esac
		i=$((i + 1))
	done
	[ -n "$interrupted" ] || learn
	stop_watching
	[ "$total" -eq 0 ] || end_stage "$total"
}

# Whoever sends and receives an AVHD compares what it stands on, as far as that is known: from the
# copy, unless that was interrupted. What is not known is read now, at both ends: once the guest
# stands still there is no time for it.
learn() {
	targets='' i=0
	set --
	while [ "$i" -lt "$a_ndisks" ]; do
		disk "$i"
		i=$((i + 1))
		[ "$leaf" != "$base" ] || continue
		quote "$target"
		targets="$targets $quoted"
		set -- "$@" "$base"
	done
	[ $# -gt 0 ] || return 0
	rm -f -- "$tmp/learnt"
	{
		eval "far_insist d_learn $targets"
		echo $? >"$tmp/learnt"
	} 8>&- &
	children=$!
	vhd-sum --quiet --keep -- "$@" 8>&- &
	children="$children $!"
	for child in $children; do
		remember_child "$child"
		echo "$child" >"$tmp/learn$child.pid"
	done
	# shellcheck disable=SC2086
	while still_there $children; do
		[ -z "$interrupted" ] || resumable "interrupted"
		[ ! -e "$tmp/full" ] || rollback "less than $(human "$opt_reserve") are free beside the AVHDs"
		sleep 0.1 8>&-
	done
	rm -f -- "$tmp"/learn*.pid
	read -r d <"$tmp/learnt" || d=70
	if cut_off "$d" || [ "$d" -eq 75 ]; then
		resumable "$far_host does not answer (status $d)"
	fi
	[ "$d" -eq 0 ] || rollback "$far_host cannot read what was copied (status $d)"
}

still_there() { # PID…
	for child; do
		! kill -0 "$child" 2>/dev/null || return 0
	done
	return 1
}

# Again and again while only the link fails. A copy that was under way for a while proves that it
# had come back.
copy_disk() {
	clock
	deadline=$((now + opt_retry * 100))
	while :; do
		clock
		tried=$now
		copy_on && break
		case $? in
		1) ;;
		4) resumable "interrupted" ;;
		3) rollback "disk $target: less than $(human "$opt_reserve") are free beside its AVHD" ;;
		*) copy_anew || rollback "$failure" ;;
		esac
		clock
		[ $((now - tried)) -lt 3000 ] || deadline=$((now + opt_retry * 100))
		[ "$now" -lt "$deadline" ] || resumable "$failure"
		warn "$failure; trying again for $(((deadline - now) / 100)) s"
		pause_for 2
		[ -z "$interrupted" ] || resumable "interrupted"
	done
	note copied "$target"
	j_copied="$j_copied$target "
	total=$((total + sent))
}

# The rest of what arrived already, or all. Returns what judge_send does.
copy_on() {
	token='' failure=''
	far d_kept "$target" >"$tmp/kept" || {
		d=$?
		[ -z "$interrupted" ] || return 4
		failure="$far_host is not reached (status $d)"
		cut_off "$d" || [ "$d" -eq 75 ] || return 5
		return 1
	}
	read -r token <"$tmp/kept" || :
	say "copying ${token:+the rest of }disk $target ($base)"
	# shellcheck disable=SC2086
	send_disk base d_recv_base "$target" $opt_rate --resume="$token" -- "$base"
	wait_child "$child"
	judge_send base
}
token=''

# What arrived earlier may be what is wrong: then once more without it.
copy_anew() {
	[ -n "$token" ] && far d_drop "$target" || return 1
	warn "$failure; its copy begins anew"
}

# Ends the copy while there is still room for the guest to go on.
watch_space() {
	! stood_still || return 0
	(
		while kill -0 $$ 2>/dev/null; do
			n=0
			while [ "$n" -lt "$a_ndisks" ]; do
				disk "$n"
				free=$(space "${leaf%/*}")
				if [ "${free:-$opt_reserve}" -lt "$opt_reserve" ]; then
					: >"$tmp/full"
					stop_sending
				fi
				n=$((n + 1))
			done
			sleep 1
		done
	) </dev/null >/dev/null 8>&- &
	watcher=$!
	remember_child "$watcher"
}
watcher=''

stop_watching() {
	[ -n "$watcher" ] || return 0
	# A shell that has traps loses what comes between its fork and their end in the child, except this:
	# one that lived on would be waited for without end.
	kill -9 "$watcher" 2>/dev/null
	wait "$watcher" 2>/dev/null
	watcher=''
}

# ---- stage ----

# The VM's definition waits at the destination, pending, before the guest is paused for it.
stage_vm() {
	must_status
	case $v_owner/$v_state in
	owner/running | owner/paused | owner/saved | owner/off) ;;
	*) rollback "$opt_vm is $v_state now, its record is \"$v_owner\"" ;;
	esac
	if stood_still && [ "$v_starts" != "$a_starts" ]; then
		rollback "$opt_vm was started meanwhile"
	fi
	mode=$v_state saved_mode=$v_saved_mode
	begin_stage stage
	list_layers
	vm-export --hypervisor="$opt_hypervisor" -- "$opt_vm" >"$tmp/vm.xml" ||
		rollback "vm-export cannot describe $opt_vm"
	list_targets
	expect=0
	[ -z "$far_local" ] || expect=$v_starts
	{
		eval "far_call d_stage $mode $expect $a_ndisks $targets $opt_networks"
		cat -- "$tmp/vm.xml"
	} >"$tmp/staged"
	far_run <"$tmp/staged" || rollback "$far_host does not take the VM (status $?)"
	end_stage 0
}
mode=off saved_mode=''

# Whether it has CPUs that stand or go: otherwise nothing has to be paused or frozen.
has_process() {
	case $mode in
	running | paused) ;;
	*) return 1 ;;
	esac
}

# The files from each leaf down to the base, as JSON strings: for the end, when the leaves are
# elsewhere.
list_layers() {
	n=0
	while [ "$n" -lt "$a_ndisks" ]; do
		disk "$n"
		vhd-info --json --chain --unlocked -- "$leaf" >"$tmp/info" ||
			rollback "disk $target: $leaf cannot be read"
		jq -c --arg b "$base" '.files[0].chain | map(.file)
			| .[:(index($b) // error("the base is not in the chain")) + 1][]' "$tmp/info" ||
			rollback "disk $target: $leaf does not stand on $base"
		n=$((n + 1))
	done >"$tmp/layers"
	store "$job/layers" <"$tmp/layers"
}

# A guest that an interrupted run left standing goes on first: the time until now is not made longer
# than it must be, and what is saved is always the last thing that it did.
wake_source() {
	[ -n "$j_pausing" ] || return 0
	# Before it goes on: what was saved is stale from then on.
	note waking
	j_yielding=''
	wake
	note running
	j_pausing=''
}

# ---- save and delta ----

# The guest stands still. Its state goes straight to the destination, and its last writes, which are
# in the AVHDs, at the same time; the paused guest stays here until the commit.
save() {
	stage=save
	if has_process; then
		boot=$(cat /proc/sys/kernel/random/boot_id)
		clock
		note pausing "$boot" "$now" "$(date +%s)"
		j_pausing="$boot $now $(date +%s)"
		[ "$mode" = paused ] || hv pause -- "$opt_vm" || rollback "$opt_vm cannot be paused"
		freeze
	fi
	clock
	stage_from=$now children=''
	start_deltas
	if has_process || goes_saved; then
		far_call d_recv_state "$mode" "$saved_mode" >"$tmp/state.call"
		send_state 8>&- &
		children="$children $!"
	fi
	for d in $children; do
		wait_child "$d"
	done
	judge_deltas
	! { has_process || goes_saved; } || judge_state
}

# On one host the saved state is where it belongs.
goes_saved() {
	[ "$mode" = saved ] && [ -z "$far_local" ]
}

# One more AVHD frees the last ones from their server's lock, and staying empty it proves that
# nothing was written since.
freeze() {
	snapshot || rollback "the last AVHDs could not be frozen"
	n=0
	while [ "$n" -lt "$a_ndisks" ]; do
		eval "top=\$top_$n"
		eval "empty_$n=\$(wc -c <\"\$top\")"
		jq -cn --arg f "$top" '$f' >>"$job/layers"
		n=$((n + 1))
	done
}
top=''

# Nothing at all was written to this AVHD: without a checkpoint there is none, the disk was off.
start_deltas() {
	i=0
	while [ "$i" -lt "$a_ndisks" ]; do
		disk "$i"
		if [ "$leaf" != "$base" ]; then
			send_disk "delta$i" d_recv_delta "$target" --from="$base" -- "$leaf"
			children="$children $child"
		fi
		i=$((i + 1))
	done
}

send_state() {
	{
		cat -- "$tmp/state.call"
		hv save -- "$opt_vm" - 3>"$tmp/state.sent"
		echo $? >"$tmp/state.status"
	} | {
		far_run >"$tmp/state.got"
		echo $? >"$tmp/state.far"
	}
	clock
	echo "$now" >"$tmp/state.end"
}

judge_state() {
	stage=save
	read -r send_status <"$tmp/state.status" || send_status=70
	read -r far_status <"$tmp/state.far" || far_status=255
	[ "$send_status" -eq 0 ] ||
		rollback "the guest's state was not saved (status $send_status, $far_host: $far_status)"
	[ "$far_status" -eq 0 ] ||
		rollback "the guest's state did not arrive at $far_host (status $far_status)"
	have=$(jq -r '"\(.bytes) \(.xxh128)"' "$tmp/state.sent")
	read -r arrived <"$tmp/state.got" || arrived=''
	[ "$have" = "$arrived" ] || rollback "the guest's state arrived damaged: $arrived, not $have"
	read -r now <"$tmp/state.end"
	took save "${have%% *}" $((now - stage_from))
}

judge_deltas() {
	stage='delta'
	i=0 total=0 merged=0 merge_time=0 last=$stage_from
	while [ "$i" -lt "$a_ndisks" ]; do
		disk "$i"
		if [ "$leaf" != "$base" ]; then
			judge_send "delta$i" || rollback "${failure:-interrupted}"
			total=$((total + sent))
			jq -rs '"\(.[1].bytes) \(.[2].hundredths)"' "$tmp/delta$i.got" >"$tmp/line"
			read -r d rest <"$tmp/line"
			merged=$((merged + d))
			[ "$rest" -le "$merge_time" ] || merge_time=$rest
			read -r now <"$tmp/delta$i.end"
			[ "$now" -le "$last" ] || last=$now
		fi
		i=$((i + 1))
	done
	[ "$last" -gt "$stage_from" ] || return 0
	[ "$merge_time" -le $((last - stage_from)) ] || merge_time=$((last - stage_from))
	took delta "$total" $((last - stage_from - merge_time))
	took merge "$merged" "$merge_time"
}

# ---- commit ----

commit() {
	[ -z "$interrupted" ] || rollback "interrupted"
	begin_stage commit
	untouched || rollback "$opt_vm was written to after it was saved"
	# From here on a signal changes nothing any more.
	trap '' INT TERM HUP
	note yielding "$mode" "$v_starts"
	if [ -n "$far_local" ]; then
		commit_local
	else
		hv yield --to="$(printf '%s' "$dest" | tr '\n' '?')" --token="$a_token" --starts="$v_starts" -- "$opt_vm" || {
			must_status
			[ "$v_owner/$v_token" = "moved/$a_token" ] ||
				rollback "$opt_vm is not given away: it was started, or runs again"
		}
	fi
	note yielded "$mode"
	j_yielded=1
	end_stage 0
}

untouched() {
	has_process || return 0
	n=0
	while [ "$n" -lt "$a_ndisks" ]; do
		eval "top=\$top_$n size=\$empty_$n"
		[ "$(wc -c <"$top")" -eq "$size" ] || return 1
		n=$((n + 1))
	done
}

# On one host the owner stays; what changes, by one rename, is where its disks are. The guest lives
# in its saved state meanwhile.
commit_local() {
	if [ "$mode" != saved ]; then
		hv stop --force -- "$opt_vm" || rollback "$opt_vm could not be stopped here"
	fi
	switch_disks || rollback "the disks of $opt_vm could not be switched"
}

switch_disks() {
	list_targets
	eval "set -- $targets"
	for d; do
		shift
		set -- "$@" "$d=$far_dir/$far_name/$d.vhd"
	done
	hv switch --token="$a_token" -- "$opt_vm" "$@"
}

# Whether a run that ended while it committed had done so.
look_for_commit() {
	[ -n "$j_yielding" ] && [ -z "$j_yielded" ] || return 0
	if [ -z "$far_local" ]; then
		[ "$v_owner/$v_token" = "moved/$a_token" ] || return 0
	else
		on_new_disks || {
			# The guest was ended here already, and lives in its saved state, which fits the new disks.
			[ "$v_state" = off ] && [ "$(yield_mode)" != off ] && [ -z "$j_aborted$opt_abort" ] || return 0
			switch_disks || rollback "the disks of $opt_vm could not be switched"
		}
	fi
	note yielded "$(yield_mode)"
	j_yielded=1
}

on_new_disks() {
	disk 0
	case $leaf in
	"$(readlink -f -- "$far_dir/$far_name")"/*) ;;
	*) return 1 ;;
	esac
}

# In which state the VM was given away.
yield_mode() {
	awk '$2 == "yielding" && $NF == "." { m = $3 } END { print m }' "$job/journal"
}

# ---- resume ----

# The destination does the rest on its own once it has heard of the commit; here it is only told,
# again and again if need be.
arrive() {
	[ -z "$j_resumed" ] || return 0
	trap '' INT TERM HUP
	mode=$(yield_mode)
	begin_stage resume
	far_insist d_arrive "$mode" >"$tmp/arrived"
	arrive_status=$?
	woken=''
	while read -r word d; do
		case $word in
		resumed) woken=$d ;;
		esac
	done <"$tmp/arrived"
	if [ "$arrive_status" -ne 0 ] || [ -z "$woken" ]; then
		doubt
	fi
	offline_time
	note resumed "$offline" "$woken"
	j_resumed="$offline $woken"
	end_stage 0
	if [ "$woken" != "$mode" ]; then
		warn "$opt_vm is $woken at $far_host; it was $mode here"
	fi
}

# Hundredths of a second from the pause until now, also over the death of a run or of the host.
offline_time() {
	offline=0
	[ "$mode" = running ] && [ -n "$j_pausing" ] || return 0
	# shellcheck disable=SC2086
	set -- $j_pausing
	clock
	if [ "$1" = "$(cat /proc/sys/kernel/random/boot_id)" ]; then
		offline=$((now - $2))
	else
		offline=$((($(date +%s) - $3) * 100))
	fi
}
offline=0

# ---- finish ----

finish() {
	begin_stage finish
	if [ -z "$far_local" ] && status && [ "$v_owner" = moved ]; then
		case $v_state in
		off) ;;
		*)
			hv stop --force -- "$opt_vm" ||
				warn "the paused guest still stands here: hv-$opt_hypervisor stop --force $opt_vm"
			;;
		esac
	fi
	far_insist d_finish ||
		die 75 "$opt_vm has moved; to clean up at $far_host, which does not answer, give the same command again"
	delete_source
	end_stage 0
	note finished
	report
}

# What is known of a disk's content beside it, unless that is a file of somebody else's.
drop_sums() { # DISK
	[ -f "$1.sums" ] && [ ! -L "$1.sums" ] || return 0
	[ "$(head -c 8 -- "$1.sums" 2>/dev/null | tr -d '\0')" != qsm-sums ] || rm -f -- "$1.sums"
}

# The disks that the VM had here: what it stood on when the move began, and the AVHDs since. Parents
# below that may be other VMs' too, and stay.
delete_source() {
	eval "set -- $(jq -rs 'map(@sh) | join(" ")' "$job/layers")"
	if [ -z "$opt_delete" ]; then
		kept=''
		for d; do
			[ ! -e "$d" ] || kept="$kept $d"
		done
		[ -z "$kept" ] || say "the disks here stay until they are deleted (--delete-source):$kept"
		return 0
	fi
	for d; do
		drop_sums "$d"
		rm -f -- "$d" || warn "cannot delete $d"
	done
	if [ -z "$far_local" ] && status && [ "$v_owner" = moved ]; then
		hv undefine -- "$opt_vm" ||
			warn "$opt_vm is still defined here: hv-$opt_hypervisor undefine $opt_vm"
	fi
	note deleted
}

# ---- the report ----

# The stages in their order, with the sums over all runs: NAME BYTES HUNDREDTHS a line.
sum_stages() {
	printf '%s' "$j_stages" | awk '
		!($1 in b) { name[++n] = $1 }
		{ b[$1] += $2; t[$1] += $3 }
		END { for (i = 1; i <= n; i++) printf "%s %.0f %d\n", name[i], b[name[i]], t[name[i]] }'
}

report_json() {
	sum_stages | jq -Rn --arg vm "$opt_vm" --arg uuid "$v_uuid" --arg dest "$dest" --arg name "$a_name" \
		--arg state "${j_resumed##* }" --argjson offline "$offline" --arg predicted "$j_predicted" '
		{version: 1, ok: true, result: "moved", vm: $vm, uuid: $uuid, destination: $dest, name: $name,
		 state: $state, offline_seconds: ($offline / 100),
		 predicted_offline_seconds: (if $predicted == "" then null else ($predicted | tonumber) / 100 end),
		 stages: [inputs | split(" ") | (.[1] | tonumber) as $b | (.[2] | tonumber / 100) as $s
			| {stage: .[0], bytes: $b, seconds: $s,
			   rate: (if $b > 0 and $s > 0 then ($b / $s | floor) else null end)}]}
		| .bytes = ([.stages[].bytes] | add)'
}

report() {
	offline=${j_resumed%% *}
	if [ -n "$opt_report" ]; then
		report_json >"$opt_report" || warn "cannot write $opt_report"
	fi
	if [ -n "$opt_json" ]; then
		report_json
		opt_json=''
		return 0
	fi
	printf '%-12s %15s %9s %14s\n' stage bytes seconds rate
	sum_stages | while read -r row bytes hundredths; do
		rate=-
		if [ "$bytes" -gt 0 ] && [ "$hundredths" -gt 0 ]; then
			rate="$(human $((bytes * 100 / hundredths)))/s"
		fi
		printf '%-12s %15d %9s %14s\n' "$row" "$bytes" "$(seconds "$hundredths")" "$rate"
	done
	printf '%s is at %s, %s; offline_seconds=%s' "$opt_vm" "$dest" "${j_resumed##* }" "$(seconds "$offline")"
	[ -z "$j_predicted" ] || printf ' predicted_offline_seconds=%s' "$(seconds "$j_predicted")"
	printf '\n'
}

# What is said with --json when there is no report.
failure_json() {
	jq -n --arg vm "$opt_vm" --arg uuid "$v_uuid" --arg dest "$dest" --arg stage "$stage" \
		--arg message "$result_message" --argjson code "$1" --arg state "$v_state" '
		{version: 1, ok: false, exit: $code,
		 result: ({"75": "resumable", "78": "refused", "80": "rolled back",
			"81": "in doubt"}[$code | tostring] // "failed"),
		 vm: $vm, uuid: $uuid, destination: $dest, stage: $stage, state: $state, message: $message}'
}
result_message=''
