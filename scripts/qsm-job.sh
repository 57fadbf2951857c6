# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=sh
#
# What qsm-pipeline.sh stands on: messages, quoting, time, the job's journal and locks, and calls of
# the destination. Sourced by it; not a program: most variables here are the script's.
# shellcheck disable=SC2034,SC2154

NL='
'

# ---- messages ----

say() {
	[ -n "$opt_quiet" ] || printf 'qsm-pipeline: %s\n' "$1" >&2
}

warn() {
	printf 'qsm-pipeline: %s\n' "$1" >&2
}

die() { # CODE MESSAGE
	[ -z "$2" ] || warn "$2"
	result_exit=$1 result_message=$2
	exit "$1"
}

misuse() {
	warn "$1"
	printf "Try 'qsm-pipeline.sh --help'.\n" >&2
	exit 64
}

# ---- text ----

# Sets quoted: TEXT as one word of sh, whatever is in it.
quote() { # TEXT
	quote_rest=$1 quoted=''
	while :; do
		case $quote_rest in
		*\'*)
			quoted="$quoted${quote_rest%%\'*}'\\''"
			quote_rest=${quote_rest#*\'}
			;;
		*) break ;;
		esac
	done
	quoted="'$quoted$quote_rest'"
}

assign() { # NAME TEXT: prints NAME='TEXT', for sh to read
	quote "$2"
	printf '%s=%s\n' "$1" "$quoted"
}

# Sets quoted: all words, each preceded by a space.
quote_all() { # WORD…
	quote_words=''
	for quote_word; do
		quote "$quote_word"
		quote_words="$quote_words $quoted"
	done
	quoted=$quote_words
}

human() { # BYTES
	awk -v b="$1" 'BEGIN {
		split("B KiB MiB GiB TiB", u, " ")
		for (i = 1; b >= 1024 && i < 5; i++) b /= 1024
		printf(i == 1 ? "%d %s" : "%.1f %s", b, u[i])
	}'
}

seconds() { # HUNDREDTHS
	printf '%d.%02d' $(($1 / 100)) $(($1 % 100))
}

size_of() { # TEXT: sets size, in bytes
	size=${1%[KMGT]}
	case $size in
	'' | *[!0-9]* | ???????????????*) return 1 ;;
	esac
	case $1 in
	*K) size=$((size << 10)) ;;
	*M) size=$((size << 20)) ;;
	*G) size=$((size << 30)) ;;
	*T) size=$((size << 40)) ;;
	esac
}

duration_of() { # TEXT: sets duration, in seconds
	duration=${1%[smh]}
	case $duration in
	'' | *[!0-9]* | ????????*) return 1 ;;
	esac
	case $1 in
	*m) duration=$((duration * 60)) ;;
	*h) duration=$((duration * 3600)) ;;
	esac
}

# ---- time ----

# Sets now: hundredths of a second, of a clock that nobody sets.
clock() {
	read -r clock_up _ </proc/uptime
	now=${clock_up%.*}${clock_up#*.}
}

# When a process started: with its number, its identity.
started() { # PID
	sed -n 's/^.*) //p' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20
}

# ---- the job's folder ----

make_durable() { # FILE|DIR…
	sync -- "$@" || die 74 "cannot make $1 durable"
}

# FILE durably holds what stdin says.
store() { # FILE
	cat >"$1.tmp" || die 73 "cannot write $1"
	make_durable "$1.tmp"
	mv -f -- "$1.tmp" "$1" || die 73 "cannot write $1"
	make_durable "${1%/*}"
}

# One record, durable before it is acted upon. The point at the end tells a whole record from a torn
# one.
note() { # WORD…
	if [ -s "$job/journal" ] && [ -n "$(tail -c 1 "$job/journal")" ]; then
		printf '\n' >>"$job/journal"
	fi
	printf '%s %s .\n' "$(date +%s)" "$*" >>"$job/journal" || die 73 "cannot write $job/journal"
	make_durable "$job/journal"
}

replay_reset() {
	j_open='' j_checkpoint='' j_copied=' ' j_pausing='' j_yielding='' j_yielded='' j_resumed=''
	j_predicted='' j_aborted='' j_rolledback='''' j_finished='' j_deleted='' j_settled='' j_stages=''
}

# What the journal says of the last attempt: sets j_*.
replay() {
	replay_reset
	[ -f "$job/journal" ] || return 0
	while read -r _ j_what j_args; do
		case $j_args in
		. | *' .') ;;
		*) continue ;;
		esac
		j_args=${j_args%.}
		j_args=${j_args% }
		case $j_what in
		begin)
			replay_reset
			j_open=1
			;;
		predicted) j_predicted=${j_args#-} ;;
		checkpoint) j_checkpoint=1 ;;
		copied) j_copied="$j_copied$j_args " ;;
		pausing) j_pausing=$j_args j_yielding='' ;;
		waking) j_yielding='' ;;
		running) j_pausing='' ;;
		yielding) j_yielding=1 ;;
		yielded) j_yielded=1 ;;
		resumed) j_resumed=$j_args ;;
		aborted) j_aborted=1 ;;
		settled) j_settled=$j_args j_open='' ;;
		rolledback) j_rolledback=1 j_open='' ;;
		finished) j_finished=1 j_open='' ;;
		deleted) j_deleted=1 ;;
		stage) j_stages="$j_stages$j_args$NL" ;;
		esac
	done <"$job/journal"
}

# What the attempt is about, for the runs that go on with it.
store_attempt() {
	{
		assign a_token "$a_token"
		assign a_vm "$a_vm"
		assign a_uuid "$a_uuid"
		assign a_dest "$a_dest"
		assign a_name "$a_name"
		assign a_was "$a_was"
		assign a_starts "$a_starts"
		assign a_ndisks "$a_ndisks"
		a_i=0
		while [ "$a_i" -lt "$a_ndisks" ]; do
			disk "$a_i"
			assign "a_${a_i}_target" "$target"
			assign "a_${a_i}_base" "$base"
			a_i=$((a_i + 1))
		done
	} | store "$job/attempt"
}

# The disk's target and base, and what status() found of it.
disk() { # INDEX
	eval "target=\$a_$1_target base=\$a_$1_base leaf=\${v_$1_leaf:-} control=\${v_$1_control:-}"
	eval "serving=\${v_$1_serving:-}"
}
target='' base='' leaf='' control='' serving=''

# ---- locks ----

# One pipeline a VM. The lock lives as long as this process and the short commands that it starts; a
# longer one is named in `children`, so that the next run can end what a kill -9 left behind.
lock_job() {
	exec 8>>"$state_dir/$v_uuid.lock" || die 73 "cannot open $state_dir/$v_uuid.lock"
	if ! flock -n 8; then
		read -r lock_pid lock_start <"$state_dir/$v_uuid.pid" || lock_pid='' lock_start=''
		if [ -n "$lock_pid" ] && [ "$(started "$lock_pid")" = "$lock_start" ]; then
			die 75 "another qsm-pipeline.sh (pid $lock_pid) works on $opt_vm"
		fi
		end_orphans
		lock_n=0
		until flock -n 8; do
			lock_n=$((lock_n + 1))
			[ $lock_n -lt 600 ] || die 75 "something that an earlier run started still works on $opt_vm"
			sleep 0.1
		done
	fi
	printf '%s %s\n' $$ "$(started $$)" >"$state_dir/$v_uuid.pid"
	end_orphans
}

end_orphans() {
	[ -f "$state_dir/$v_uuid.children" ] || return 0
	while read -r lock_pid lock_start; do
		if [ -n "$lock_start" ] && [ "$(started "$lock_pid")" = "$lock_start" ]; then
			kill "$lock_pid" 2>/dev/null
		fi
	done <"$state_dir/$v_uuid.children"
	rm -f -- "$state_dir/$v_uuid.children"
}

remember_child() { # PID
	printf '%s %s\n' "$1" "$(started "$1")" >>"$state_dir/$v_uuid.children"
}

# ---- the destination ----

# A constant that every login shell hands to sh unharmed. The script's length comes first, then the
# script, read to the byte: what follows on stdin is left for the commands in it.
# shellcheck disable=SC2016
far_boot='read -r n && eval "$(dd ibs=1 obs=65536 count="$n" 2>/dev/null)"'

# Prints what goes ahead of the data: the destination's half, and a call of one function in it. Not
# to be used by two processes at once.
far_call() { # FUNCTION [WORD…]
	{
		assign q_path "$far_path"
		assign q_hyp "$far_hyp"
		assign q_dir "$far_dir"
		assign q_name "$far_name"
		assign q_uuid "$far_uuid"
		assign q_token "$far_token"
		assign q_local "$far_local"
		cat -- "$parts/qsm-dest.sh"
		far_function=$1
		shift
		quote_all "$@"
		printf '%s%s\n' "$far_function" "$quoted"
	} >"$tmp/script" || die 74 "cannot write $tmp/script"
	printf '%d\n' "$(wc -c <"$tmp/script")"
	cat -- "$tmp/script"
}

# stdin: a call, and its data. The exit status is the function's, or another than 0 and 64 to 81
# when there was no connection.
far_run() {
	if [ -n "$far_local$far_here" ]; then
		sh -c "$far_boot"
	else
		# The words of --ssh are words of a command line.
		(
			set -f
			# shellcheck disable=SC2086
			exec $opt_ssh "$far_host" "${opt_sudo:+sudo -n }sh -c '$far_boot'"
		)
	fi
}

far() { # FUNCTION [WORD…]: no data
	far_call "$@" >"$tmp/call" || die 74 "cannot write $tmp/call"
	far_run <"$tmp/call"
}

cut_off() { # STATUS: of far_run: was it the link?
	[ "$1" -ne 0 ] && { [ "$1" -lt 64 ] || [ "$1" -gt 81 ]; }
}

# The same until the destination answers, at most --retry long.
far_insist() { # FUNCTION [WORD…]
	clock
	far_until=$((now + opt_retry * 100)) far_told=''
	while :; do
		far "$@"
		far_status=$?
		if ! cut_off "$far_status" && [ "$far_status" -ne 75 ]; then
			return "$far_status"
		fi
		clock
		if [ "$now" -ge "$far_until" ] || [ -n "$interrupted" ]; then
			return "$far_status"
		fi
		[ -n "$far_told" ] ||
			warn "$far_host does not answer (status $far_status); trying again for ${opt_retry} s"
		far_told=1
		pause_for 2
	done
}

# Until it has ended, whatever interrupts the waiting. Its number is no sign of life: it may be
# another's by then.
wait_child() { # PID
	until
		wait "$1"
		[ $? -le 128 ]
	do
		stop_sending
	done
}

# An interrupt ends the waiting.
pause_for() { # SECONDS
	[ -z "$interrupted" ] || return 0
	sleep "$1" 8>&- &
	pause_pid=$!
	wait "$pause_pid"
	kill "$pause_pid" 2>/dev/null || :
}
