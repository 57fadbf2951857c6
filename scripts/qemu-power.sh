# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=sh
#
# A VM starts, stands still, goes on and ends.
# Part of hv-qemu, which sources it; most variables here are the script's.
# shellcheck disable=SC2034,SC2154

# Checked, counted, disks served, QEMU there with its CPUs stopped. The caller clears "starting"
# once the guest is as it was asked for; any exit before that takes all down again.
bring_up() { # [defer]
	need_owner
	load_domain "$dir/domain.xml"
	[ "$dom_uuid" = "$uuid" ] || die 65 "$dir/owner is of another VM than $dir/domain.xml"
	make_run_dir
	read_state
	case $state in
	off | "$from_saved") ;;
	crashed) say "$name had crashed: $reason" ;;
	saved) die 75 "$name is saved: start goes on from there, discard drops it" ;;
	*) die 75 "$name is $state already" ;;
	esac
	[ -z "$from_saved" ] || check_saved
	[ -n "$saved" ] || drop_saved
	on_exit="$on_exit start_undo"
	tear_down
	starting=1
	count_start
	start_servers
	start_qemu "$@"
}
starting='' from_saved=''

start_undo() {
	[ -z "$send_pid" ] || kill -9 "$send_pid" 2>/dev/null
	[ -z "$starting" ] || tear_down
}
send_pid=''

verb_start() {
	one_vm "$@"
	lock_vm
	read_state
	if [ "$state" = saved ]; then
		start_saved "$saved_mode"
		return
	fi
	bring_up
	continue_guest || die 74 "$name does not run: ${reason:-$state}"
	starting=''
	say "$name runs"
}

# The guest goes on from what was saved here. Until the state is renamed away it is all there is of
# the guest; from then on it is this process, whose CPUs stand still until then.
start_saved() { # running|paused
	from_saved=saved
	bring_up defer
	load_state <"$dir/saved/state" || die 74 "$name: $dir/saved/state cannot be loaded"
	starting=''
	drop_saved
	if [ "$1" = running ]; then
		continue_guest || die 74 "$name does not run: ${reason:-$state}"
		announce
	fi
	say "$name goes on from its saved state$([ "$1" = running ] || echo ', paused')"
}

verb_pause() {
	one_vm "$@"
	lock_vm
	read_state
	need_running
	[ "$state" = running ] || return 0
	qmp_do '{"execute":"stop"}' "cannot pause"
	say "$name is paused"
}

verb_resume() {
	one_vm "$@"
	lock_vm
	need_owner
	read_state
	if [ "$state" = saved ]; then
		start_saved running
		return
	fi
	load_domain "$dir/domain.xml"
	need_running
	dead_servers
	repair_servers
	[ "$state" != running ] || return 0
	# A save that was cut off may still be at work.
	qmp '{"execute":"migrate_cancel"}' || :
	after=''
	[ "$reason" != "$io_error" ] || after=storage
	continue_guest "$after" || die 74 "$name stays paused: ${reason:-$state}"
	say "$name runs"
}

repair_servers() {
	for t in $dead; do
		for i in $all_disks; do
			disk "$i"
			[ "$d_target" = "$t" ] || continue
			start_server
			wait_server "$detached"
			say "$name: the server of disk $t runs again"
		done
	done
}

verb_repair() {
	one_vm "$@"
	lock_vm
	need_owner
	load_domain "$dir/domain.xml"
	read_state
	need_running
	dead_servers
	repair_servers
	[ "$reason" = "$io_error" ] || return 0
	continue_guest storage || die 74 "$name stays paused: ${reason:-$state}"
}

verb_flush() {
	one_vm "$@"
	load_domain "$dir/domain.xml"
	read_state
	if [ "$state" = saved ]; then
		# Durable before its state was. What an interrupted save left running ends here.
		lock_vm
		read_state
		[ "$state" != saved ] || tear_down
		return
	fi
	need_running
	flush_disks || exit 74
}

verb_stop() {
	one_vm "$@"
	case $opt_timeout in
	'' | *[!0-9]*) misuse "--timeout=SECONDS: a number is wanted" ;;
	esac
	lock_vm
	[ -z "$opt_force" ] || mute_ok=1 monitor_wait=10
	read_state
	# What is no longer ours to run is not asked to shut down: that would run it.
	case $opt_force$state/$record in
	saved/*)
		tear_down
		say "$name is saved and does not run"
		return
		;;
	running/owner) shut_down ;;
	paused/owner)
		die 75 "$name is paused and cannot shut down; resume it, or stop --force"
		;;
	esac
	if [ "$state" = mute ]; then
		warn "$name: $reason; it is killed"
	elif qemu_alive; then
		qmp '{"execute":"quit"}' || :
		wait_gone "$qemu_pid" 300 || warn "$name: QEMU does not quit and is killed"
	fi
	tear_down
	[ "$record" = pending ] || drop_saved
	say "$name is off"
}

# Presses the power button and waits for the guest.
shut_down() {
	qmp_do '{"execute":"system_powerdown"}' "cannot ask the guest to shut down"
	wait_gone "$qemu_pid" $((opt_timeout * 10)) ||
		die 75 "$name did not shut down within $opt_timeout s; stop --force ends it"
}

verb_autostart() {
	[ $# -eq 0 ] || misuse "autostart: no argument is wanted"
	failed=0
	for d in "$QSM_VM_DIR"/*/; do
		{ [ -e "${d}autostart" ] && [ -e "${d}owner" ]; } || continue
		d=${d%/}
		case $("$0" status -- "${d##*/}") in
		off | crashed | saved) "$0" start -- "${d##*/}" || failed=$? ;;
		esac
	done
	return "$failed"
}
