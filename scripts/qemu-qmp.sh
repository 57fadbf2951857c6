# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=sh
#
# QMP, one session a command, over a pair of pipes; what the guest does.
# Part of hv-qemu, which sources it; most variables here are the script's.
# shellcheck disable=SC2034,SC2154

qmp_open() {
	[ -z "$qmp_pid" ] || return 0
	need socat
	qmp_pipes=$(mktemp -d "$rd/.qmp.XXXXXX") || die 73 "cannot make a folder in $rd"
	mkfifo "$qmp_pipes/in" "$qmp_pipes/out" || die 73 "cannot make a pipe in $rd"
	# All four ends are opened here, and 7 and 8 hold them open for that moment: who opens one end of a
	# pipe waits for who opens the other, without end if that died.
	exec 7<>"$qmp_pipes/in" 8<>"$qmp_pipes/out"
	# shellcheck disable=SC2094
	exec 4<"$qmp_pipes/in" 5>"$qmp_pipes/out" 7>"$qmp_pipes/in" 8<"$qmp_pipes/out"
	rm -rf -- "$qmp_pipes"
	# By its name in the folder alone: socat gives commas and colons in an address a meaning.
	# A monitor that says nothing for so long will not say anything later. Where others wait for it
	# already, connect() would wait for them without end; with a limit of its own it fails at once, and
	# is tried again.
	(
		cd "$rd" || exit
		exec socat "-T$monitor_wait" \
			"UNIX-CONNECT:$monitor,connect-timeout=$monitor_wait,retry=50,interval=0.1" - \
			<&4 >&5 2>/dev/null 3>&- 4<&- 5>&- 6>&- 7>&- 8<&- 9>&-
	) &
	qmp_pid=$!
	exec 4<&- 5>&-
	if IFS= read -r qmp_line <&8 && qmp '{"execute":"qmp_capabilities"}'; then
		return 0
	fi
	qmp_close
	return 1
}
# A monitor serves one client at a time. Who only looks has one of its own and need not wait for a
# save.
qmp_pid='' monitor=qmp.sock monitor_wait=60

qmp_close() {
	[ -n "$qmp_pid" ] || return 0
	exec 7>&- 8<&-
	# As every helper of ours is ended: a shell that has traps loses what comes between its fork and
	# their end in the child, except this.
	kill -9 "$qmp_pid" 2>/dev/null
	wait "$qmp_pid" 2>/dev/null
	qmp_pid=''
}

# Sends one command, leaves the answer in qmp_line. 0 done, 1 refused, 2 no answer.
qmp() { # JSON
	if [ -n "$qmp_pid" ] && printf '%s\n' "$1" 2>/dev/null >&7; then
		while IFS= read -r qmp_line <&8; do
			case $qmp_line in
			'{"timestamp"'*) ;;
			'{"return"'*) return 0 ;;
			*) return 1 ;;
			esac
		done
	fi
	qmp_line='{"error":{"desc":"QEMU ended or does not answer"}}'
	return 2
}

qmp_do() { # JSON WHAT
	qmp "$1" || die 74 "$name: $2: $(printf '%s' "$qmp_line" | jq -r .error.desc)"
}

# What the guest does: sets state and reason. No lock: looking disturbs nobody.
read_state() {
	read_saved
	read_process
	[ -n "$saved" ] || return 0
	if [ "$state" = running ] && [ -n "$locked" ]; then
		# By no command of ours. Its disks have moved on, so the saved state must never be used.
		drop_saved
	elif [ "$state" != running ]; then
		# A process that has not run since the state was saved counts for nothing.
		state=saved reason=''
	fi
}

read_process() {
	state=off reason='' qmp_line=''
	if ! qemu_alive; then
		# QEMU removes its pid file when it ends in good order.
		[ ! -e "$rd/qemu.pid" ] || state=crashed reason='QEMU is gone'
		return 0
	fi
	if ! qmp_open || ! qmp '{"execute":"query-status"}'; then
		qmp_close
		if qemu_alive; then
			state=mute reason="QEMU (pid $qemu_pid) runs but its monitor does not answer"
			[ -n "$mute_ok" ] || die 69 "$name: $reason"
			return 0
		fi
		[ ! -e "$rd/qemu.pid" ] || state=crashed reason='QEMU is gone'
		return 0
	fi
	case $qmp_line in
	*'"status": "running"'*) state=running ;;
	*'"status": "postmigrate"'*) state=handed-over ;;
	*'"status": "io-error"'*) state=paused reason=$io_error ;;
	*'"status": "shutdown"'*) state=off ;;
	*'"status": "guest-panicked"'*) state=crashed reason='the guest panicked' ;;
	*'"status": "internal-error"'*) state=crashed reason='QEMU: internal error' ;;
	*) state=paused ;;
	esac
}
io_error='I/O error on its storage' mute_ok=''

need_running() {
	case $state in
	off) die 75 "$name is off" ;;
	saved) die 75 "$name is saved: start goes on from there" ;;
	crashed) die 75 "$name crashed: $reason" ;;
	esac
}

# Asks all disk servers; an answer that is not {"ok":true…} is a failure.
flush_disks() {
	flush_failed=''
	for i in $all_disks; do
		disk "$i"
		[ "$d_readonly" != true ] || continue
		answer=$(cd "$rd" && printf '{"command":"flush"}\n' |
			socat -t60 -T60 - "UNIX-CONNECT:$d_target.ctl" 2>&1 3>&- 9>&-)
		case $answer in
		*'"ok":true'* | *'"ok": true'*) ;;
		*)
			warn "$name: disk $d_target is not flushed: $answer"
			flush_failed=1
			;;
		esac
	done
	[ -z "$flush_failed" ]
}

# Continues the CPUs. After a failure of its storage the guest stops again until QEMU has found the
# server: it tries after 1, 2, 4, 8 and then every 16 seconds.
continue_guest() { # [storage]
	cont_tries=10 cont_pause=0.2
	[ "${1:-}" != storage ] || cont_tries=60 cont_pause=0.5
	while :; do
		qmp_do '{"execute":"cont"}' "cannot continue"
		[ "${1:-}" != storage ] || sleep 0.2
		read_state
		[ "$state" != running ] || return 0
		cont_tries=$((cont_tries - 1))
		[ $cont_tries -gt 0 ] || return 1
		sleep $cont_pause
	done
}
