# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=sh
#
# The state of a guest on its way: out of QEMU, and into another one.
# Part of hv-qemu, which sources it; most variables here are the script's.
# shellcheck disable=SC2034,SC2154

verb_save() { # VM [FILE|-]
	case $# in
	1 | 2) ;;
	*) misuse "save: a VM is wanted, and perhaps a file" ;;
	esac
	find_vm "$1"
	file=${2-}
	need socat jq xxh128sum
	if [ $# -eq 1 ]; then
		[ -z "$opt_force" ] || misuse "save: --force is for a file"
	elif [ "$file" = - ]; then
		[ ! -t 1 ] || misuse "the state is not written to a terminal"
	else
		file=$(absolute "$file")
		[ ! -e "$file" ] || [ -n "$opt_force" ] || die 73 "$file exists (--force replaces it)"
		[ -d "$(dirname "$file")" ] || die 73 "$(dirname "$file") is not there"
	fi
	lock_vm
	need_owner
	read_state
	if [ "$state" = saved ]; then
		copy_saved
		return
	fi
	load_domain "$dir/domain.xml"
	need_running
	[ "$state" != handed-over ] || die 75 "$name has given its state away already; resume it first"
	uri=$(jq -cn --arg p "unix:$rd/save.sock" '{execute: "migrate", arguments: {uri: $p}}')
	was=$state
	on_exit="$on_exit save_undo"
	saving=1
	save_receivers
	qmp_do '{"execute":"stop"}' "cannot pause"
	flush_disks || die 74 "$name: not saved"
	# The default is 128 MiB a second.
	qmp_do '{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":1125899906842624}}' \
		"cannot set the bandwidth"
	qmp_do "$uri" "cannot save"
	save_wait
	if [ -n "$file" ]; then
		save_receipt
		saving=''
		say "$name's state is written; the stopped guest stays until stop or resume"
		return
	fi
	flush_disks || die 74 "$name: not saved"
	saved_bytes=$(wc -c <"$save_out") saved_mode=$was
	sum_of "$save_out"
	saved_sum=$sum
	publish_saved
	# From here on the guest is what lies in the file.
	saving=''
	tear_down
	print_receipt "$saved_bytes" "$saved_sum"
	say "$name is saved"
}
saving='' was=''

# QEMU does not look at what becomes of its bytes. They go into a socket, the exit status of whoever
# reads it is ours to see, and what was read until the end is counted and summed.
save_receivers() {
	rm -rf -- "$rd"/.save.* # of one that was killed
	work=$(mktemp -d "$rd/.save.XXXXXX") || die 73 "cannot make a folder in $rd"
	rm -f -- "$rd/save.sock"
	if [ "$file" = - ]; then
		mkfifo "$work/all" "$work/out" "$work/sum" "$work/count" ||
			die 73 "cannot make a pipe in $rd"
		# A tee that is not killed by SIGPIPE may say nothing of a reader that left: cat does.
		tee "$work/sum" "$work/count" <"$work/all" >"$work/out" 2>"$work/tee" \
			3>&- 7>&- 8>&- 9>&- &
		tee_pid=$!
		cat <"$work/out" 2>"$work/cat" 3>&- 7>&- 8>&- 9>&- &
		cat_pid=$!
		xxh128sum <"$work/sum" >"$work/xxh128" 3>&- 7>&- 8>&- 9>&- &
		sum_pid=$!
		wc -c <"$work/count" >"$work/bytes" 3>&- 7>&- 8>&- 9>&- &
		count_pid=$!
		save_out=$work/all
	elif [ -z "$file" ]; then
		make_saved_new
		save_out=$dir/saved.new/state
	else
		save_tmp=$(mktemp "$file.XXXXXX") || die 73 "cannot create a file beside $file"
		save_out=$save_tmp
	fi
	(
		cd "$rd" || exit
		# Should we be killed before QEMU comes, whoever reads the state must not wait for ever.
		exec socat -u -b1048576 UNIX-LISTEN:save.sock,mode=0600,accept-timeout=300 STDOUT
	) >"$save_out" 2>"$work/error" 3>&- 7>&- 8>&- 9>&- &
	recv_pid=$!
	save_tries=0
	until [ -S "$rd/save.sock" ]; do
		save_tries=$((save_tries + 1))
		if gone "$recv_pid" || [ $save_tries -ge 3000 ]; then
			die 69 "$name: socat does not listen: $(cat "$work/error")"
		fi
		sleep 0.01
	done
}
work='' save_tmp='' tee_pid='' cat_pid='' sum_pid='' count_pid='' recv_pid=''

save_error() { # what the receivers said, for the end of a message
	cat "$work/error" "$work/cat" "$work/tee" 2>/dev/null | head -n 2 | tr '\n' ' ' | sed 's/^/: /'
}

save_wait() {
	save_tries=0
	while :; do
		qmp_do '{"execute":"query-migrate"}' "not saved"
		case $qmp_line in
		*'"status": "completed"'*) break ;;
		*'"status": "failed"'* | *'"status": "cancelled"'*)
			why=$(printf '%s' "$qmp_line" | jq -r '.return["error-desc"] // "cut off"')
			# The socket has its name a moment before it listens.
			case $why in
			*'Connection refused')
				save_tries=$((save_tries + 1))
				if [ "$save_tries" -lt 50 ]; then
					sleep 0.02
					qmp_do "$uri" "cannot save"
					continue
				fi
				;;
			esac
			die 74 "$name: not saved: $why$(save_error)"
			;;
		esac
		sleep 0.02
	done
	for p in $recv_pid $tee_pid $cat_pid $sum_pid $count_pid; do
		wait "$p" || die 74 "$name: not saved: the state could not be written$(save_error)"
	done
	recv_pid='' tee_pid='' cat_pid='' sum_pid='' count_pid=''
}

save_receipt() {
	if [ "$file" = - ]; then
		read -r bytes <"$work/bytes"
		read -r sum rest <"$work/xxh128"
	else
		bytes=$(wc -c <"$save_tmp")
		sum_of "$save_tmp"
		publish_state
	fi
	print_receipt "$bytes" "$sum"
}
rest=''

print_receipt() { # BYTES SUM
	receipt=$(printf '{"version":1,"bytes":%d,"xxh128":"%s"}' "$1" "$2")
	if [ "$file" != - ]; then
		printf '%s\n' "$receipt"
	elif { true >&3; } 2>/dev/null; then
		printf '%s\n' "$receipt" >&3
	fi || die 74 "cannot write the receipt"
}

publish_state() {
	durable "$save_tmp"
	if [ -n "$opt_force" ]; then
		mv -f -- "$save_tmp" "$file" || die 73 "cannot create $file"
	else
		# A link never replaces a file that came meanwhile.
		ln -- "$save_tmp" "$file" || die 73 "cannot create $file"
		rm -f -- "$save_tmp"
	fi
	save_tmp=''
	durable "$(dirname "$file")"
}

# After a failure the guest goes on as it was.
save_undo() {
	[ -z "$save_tmp" ] || rm -f -- "$save_tmp"
	if [ -n "$saving" ]; then
		saving=''
		qmp '{"execute":"migrate_cancel"}' || :
		for p in $recv_pid $tee_pid $cat_pid $sum_pid $count_pid; do
			kill -9 "$p" 2>/dev/null
		done
		undo_tries=0
		while [ $undo_tries -lt 250 ] && qmp '{"execute":"query-migrate"}'; do
			case $qmp_line in
			*'"status": "cancelling"'* | *'"status": "active"'* | *'"status": "device"'*) ;;
			*) break ;;
			esac
			undo_tries=$((undo_tries + 1))
			sleep 0.02
		done
		if [ "$was" = running ]; then
			read_state
			case $state in
			paused | handed-over) continue_guest || warn "$name stays paused: ${reason:-$state}" ;;
			esac
		fi
	fi
	[ -z "$work" ] || rm -rf -- "$work" "$rd/save.sock" "$dir/saved.new"
}

verb_restore() { # VM FILE|-
	[ $# -eq 2 ] || misuse "restore: a VM and a file are wanted"
	find_vm "$1"
	file=$2
	need socat jq
	if [ "$file" = - ]; then
		[ ! -t 0 ] || misuse "the state is not read from a terminal"
	else
		[ -e "$file" ] || die 66 "$file is not there"
		[ -r "$file" ] || die 77 "$file is not readable"
		exec <"$file"
	fi
	if [ -n "$opt_later" ]; then
		lock_vm
		take_in
		return
	fi
	exec 6<&0 </dev/null
	lock_vm
	bring_up defer
	load_state <&6 || die 74 "$name: the state cannot be loaded"
	exec 6<&-
	if [ -z "$opt_paused" ]; then
		continue_guest || die 74 "$name does not run: ${reason:-$state}"
		announce
	fi
	starting=''
	say "$name is restored${opt_paused:+, paused}"
}

# stdin: a state. Afterwards all of it is loaded, and the CPUs stand still.
load_state() {
	need socat
	rm -f -- "$rd/load.sock"
	qmp_do "$(jq -cn --arg p "unix:$rd/load.sock" \
		'{execute: "migrate-incoming", arguments: {uri: $p}}')" "cannot load"
	exec 5<&0
	(
		cd "$rd" || exit
		exec socat -u -b1048576 STDIN UNIX-CONNECT:load.sock
	) <&5 2>/dev/null 3>&- 5<&- 6>&- 7>&- 8>&- 9>&- &
	send_pid=$!
	exec 5<&-
	load_wait
}

load_wait() {
	load_tries=0 load_idle=0
	while :; do
		qmp '{"execute":"query-migrate"}' || load_failed
		case $qmp_line in
		*'"status": "completed"'*) break ;;
		*'"status": "failed"'*) load_failed ;;
		esac
		# Looked at every ten seconds: who sends has ended, and nothing comes of it.
		load_tries=$((load_tries + 1))
		if [ $((load_tries % 500)) -eq 0 ] && gone "$send_pid"; then
			load_idle=$((load_idle + 1))
			[ $load_idle -lt 6 ] || load_failed
		fi
		sleep 0.02
	done
	kill -9 "$send_pid" 2>/dev/null
	wait "$send_pid" 2>/dev/null
	send_pid=''
	rm -f -- "$rd/load.sock"
	# All is loaded; QEMU takes over the disks a moment later.
	load_tries=0
	while read_state; do
		case $qmp_line in
		*'"inmigrate"'*) sleep 0.01 ;;
		*) break ;;
		esac
		load_tries=$((load_tries + 1))
		[ $load_tries -lt 3000 ] || load_failed
	done
}

load_failed() {
	warn "$name: the state cannot be loaded"
	show_log "$rd/qemu.log"
	exit 65
}

# Tells the switches where the guest is, besides what QEMU told them while it loaded.
announce() {
	qmp '{"execute":"announce-self","arguments":{"initial":50,"max":550,"rounds":5,"step":100}}' || :
}
