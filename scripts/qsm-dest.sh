# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=sh
#
# The destination's half of qsm-pipeline.sh, which sends this text, a line of assignments in front
# of it and a call behind it, as the beginning of sh's stdin; the data of the call follows. It needs
# nothing of the source but what is in q_*, and nothing stays running when a call ends.
#
# All that belongs to an arriving VM lies in DIR/NAME: the disks, and in .qsm/
#   uuid, token     whose it is, and of which attempt
#   lock            shared by receivers, exclusive for everything else
#   lock.X, busy.X  one receiver of X (a disk, the state) at a time; which it is (it can be ended)
#   state           the saved guest; renamed to state.used before its CPUs go on, so never used twice
#   mode            running, paused, saved or off: how the VM is to go on
#   starts          start counter after which the state is stale

set -u
umask 077
trap '' PIPE

: "${q_path:=}" "${q_hyp:=qemu}" "${q_dir:=}" "${q_name:=}" "${q_uuid:=}" "${q_token:=}" "${q_local:=}"
PATH=${q_path:+$q_path:}$PATH:/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin
export PATH
case $q_dir in
/*) ;;
*) q_dir=$(pwd)/$q_dir ;;
esac
d_home=$q_dir/$q_name
d_job=$d_home/.qsm

d_warn() {
	printf 'qsm-pipeline: %s: %s\n' "$(uname -n)" "$1" >&2
}

d_die() { # CODE MESSAGE
	d_warn "$2"
	exit "$1"
}

d_hv() {
	"hv-$q_hyp" --quiet "$@"
}

d_tell() { # WORD…: the source may be gone, the work goes on all the same
	printf '%s\n' "$*" 2>/dev/null || :
}

d_sync() { # FILE|DIR…
	sync -- "$@" || d_die 74 "cannot make $1 durable"
}

d_store() { # FILE TEXT
	printf '%s\n' "$2" >"$1.tmp" || d_die 73 "cannot write $1"
	d_sync "$1.tmp"
	mv -f -- "$1.tmp" "$1" || d_die 73 "cannot write $1"
	d_sync "${1%/*}"
}

d_read() { # FILE: its first line, or nothing
	d_line=''
	[ ! -f "$1" ] || IFS= read -r d_line <"$1" || :
	printf '%s' "$d_line"
}

# When a process started: with its number, its identity.
d_started() { # PID
	sed -n 's/^.*) //p' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20
}

# ---- whose folder ----

# A receiver whose link was cut may wait for data for hours; who comes with the same token may end
# it.
d_evict() { # FILE…
	for d_busy; do
		[ -f "$d_busy" ] || continue
		read -r d_pid d_start <"$d_busy" || continue
		if [ -n "$d_start" ] && [ "$(d_started "$d_pid")" = "$d_start" ]; then
			kill "$d_pid" 2>/dev/null
		fi
	done
}

d_take() { # FD shared|exclusive BUSY-FILE…
	d_fd=$1 d_kind=$2 d_n=0
	shift 2
	until flock --"$d_kind" --nonblock "$d_fd"; do
		case $d_n in
		5 | 50) d_evict "$@" ;;
		esac
		d_n=$((d_n + 1))
		[ "$d_n" -lt 200 ] || d_die 75 "another command works in $d_home"
		sleep 0.1
	done
}

d_lock() { # [PART]
	[ "$(d_read "$d_job/uuid")" = "$q_uuid" ] || d_die 66 "$d_home does not belong to this move"
	d_part=${1:-}
	exec 9>>"$d_job/lock" 7>>"$d_job/lock.${d_part:-all}" || d_die 73 "cannot open $d_job/lock"
	if [ -n "$d_part" ]; then
		d_take 9 shared
		d_take 7 exclusive "$d_job/busy.$d_part"
	else
		d_take 9 exclusive "$d_job"/busy.*
	fi
	[ "$(d_read "$d_job/token")" = "$q_token" ] ||
		d_die 77 "$d_home belongs to another attempt to move the VM"
}

d_is_free() {
	[ -d "$d_home" ] || { [ ! -e "$d_home" ] && [ ! -L "$d_home" ]; } || return 1
	[ "$(d_read "$d_job/uuid")" = "$q_uuid" ] || [ -z "$(ls -A -- "$d_home" 2>/dev/null)" ]
}

# Makes the folder, or takes over what an earlier attempt of the same VM left.
d_prepare() {
	d_is_free || d_die 73 "$d_home exists and does not belong to this move"
	mkdir -p -- "$d_job" || d_die 73 "cannot make $d_home"
	d_store "$d_job/uuid" "$q_uuid"
	d_store "$d_job/token" "$q_token"
	d_sync "$d_home" "$q_dir"
}

# Runs a receiver of this call's stdin so that d_evict can end it.
d_receive() { # COMMAND…
	exec 3<&0
	"$@" <&3 3<&- 7>&- 9>&- &
	d_pid=$!
	exec 3<&-
	printf '%s %s\n' "$d_pid" "$(d_started "$d_pid")" >"$d_job/busy.$d_part"
	wait "$d_pid"
	d_status=$?
	rm -f -- "$d_job/busy.$d_part"
	# Ended by a signal: not to be taken for a broken link.
	[ "$d_status" -le 128 ] || d_die 74 "$1 was killed (status $d_status)"
	return "$d_status"
}

# ---- preflight ----

d_block() { # TEXT
	printf 'blocker %s\n' "$(printf '%s' "$1" | tr '\n' ' ')"
}

d_space() { # DIR: free bytes there
	df -Pk -- "$1" 2>/dev/null |
		awk 'NR > 1 { for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+%$/) { printf "%.0f\n", $(i - 1) * 1024; exit } }'
}

# Looks, and changes nothing. The VM's document is on stdin.
d_preflight() { # VERSION BYTES NETWORK…
	d_version=$1 d_bytes=$2
	shift 2
	printf 'qsm-pipeline\nhost %s\nclock %s\n' "$(uname -n)" "$(date +%s)"
	d_missing=
	for d_tool in "hv-$q_hyp" vhd-recv vhd-sum vhd-merge vhd-info vm-import jq flock sync df \
		awk xxh128sum; do
		command -v "$d_tool" >/dev/null 2>&1 || {
			d_block "$(uname -n): $d_tool is not there"
			d_missing=1
		}
	done
	d_preflight_folder
	[ -z "$d_missing" ] || return 0
	d_have=$(vhd-recv --version | awk 'NR == 1 { print $NF }')
	printf 'version %s\n' "$d_have"
	[ "${d_have%.*}" = "${d_version%.*}" ] ||
		d_block "$(uname -n): the tools there are of version $d_have, here of $d_version"
	[ -n "$q_local" ] || d_preflight_vm "$@"
}

# How long does it take to get this here?
d_probe() {
	wc -c
}

d_preflight_folder() {
	if [ ! -d "$q_dir" ]; then
		d_block "$(uname -n): there is no folder $q_dir"
		return
	fi
	{ [ -w "$q_dir" ] && [ -x "$q_dir" ]; } || d_block "$(uname -n): $q_dir is not writable"
	d_is_free || d_block "$(uname -n): $d_home exists already, and is not empty"
	d_free=$(d_space "$q_dir")
	printf 'free %s\n' "${d_free:-0}"
	[ -z "$d_free" ] || [ "$d_free" -ge "$d_bytes" ] ||
		d_block "$(uname -n): too little space in $q_dir: $((d_free >> 20)) MiB are free, $((d_bytes >> 20)) MiB needed"
}

d_preflight_vm() { # NETWORK…
	for d_net; do
		shift
		set -- "$@" --network="$d_net"
	done
	d_out=$(vm-import --quiet --hypervisor="$q_hyp" --check --print=xml --json --name="$q_name" "$@" \
		2>/dev/null) && return 0
	printf '%s\n' "$d_out" | jq -r '.blockers[] | gsub("\n"; " ")' 2>/dev/null | {
		d_n=0
		while IFS= read -r d_line; do
			d_block "$(uname -n): $d_line"
			d_n=1
		done
		[ $d_n = 1 ] || d_block "$(uname -n): vm-import refuses the VM's description"
	}
}

# ---- data ----

# The disk, and what a receiver that was killed left of it.
d_remove() { # TARGET
	rm -f -- "$d_home/$1.vhd" "$d_home/$1.avhd" "$d_home/.$1.vhd".*.tmp "$d_home/.$1.avhd".*.tmp \
		"$d_home/$1.vhd.sums" "$d_home/$1.avhd.sums" "$d_job/changed.$1"
}

# Of a copy that was cut, what is durable is kept: prints the token to go on with, or nothing.
d_kept() { # TARGET
	d_lock "$1"
	vhd-recv --token -- "$d_home/$1.vhd"
}

d_drop() { # TARGET
	d_lock "$1"
	d_remove "$1"
}

# Prints vhd-recv's receipt.
d_recv_base() { # TARGET
	d_lock "$1"
	[ -n "$(vhd-recv --token -- "$d_home/$1.vhd")" ] || d_remove "$1"
	d_receive vhd-recv --quiet -- "$d_home/$1.vhd"
}

# What was copied is read, as far as it is not known: a copy that was interrupted may not know all.
d_learn() { # TARGET…
	for d_t; do
		[ ! -e "$d_job/changed.$d_t" ] || continue
		d_lock "$d_t"
		d_receive vhd-sum --quiet --keep -- "$d_home/$d_t.vhd" || exit
	done
}

# From now on it is not what was copied. Need not be durable: nothing is known of a disk's content
# after a new start, so nothing is compared.
d_changes() { # TARGET
	: >"$d_job/changed.$1" || d_die 73 "cannot write $d_job/changed.$1"
}

# An increment, which is folded into its base at once: what can fail for want of space fails before
# the commit. A later increment of the same base holds whatever an earlier one held, so one that was
# left behind half merged or not at all is no harm: it goes first. Only then is the base not the one
# at the source. Prints three objects.
d_recv_delta() { # TARGET
	d_lock "$1"
	rm -f -- "$d_home/.$1.avhd".*.tmp
	if [ -e "$d_home/$1.avhd" ]; then
		d_changes "$1"
		vhd-merge --quiet --delete -- "$d_home/$1.avhd" >/dev/null || exit
	fi
	d_changed=
	[ ! -e "$d_job/changed.$1" ] || d_changed=--base-changed
	# shellcheck disable=SC2086
	d_receive vhd-recv --quiet $d_changed --parent="$d_home/$1.vhd" -- "$d_home/$1.avhd" || exit
	d_changes "$1"
	d_begin=$(d_now)
	vhd-merge --quiet --json --delete -- "$d_home/$1.avhd" || exit
	printf '{"hundredths":%d}\n' $(($(d_now) - d_begin))
}

d_now() { # hundredths of a second
	read -r d_up d_line </proc/uptime
	printf '%s' "${d_up%.*}${d_up#*.}"
}

# Prints bytes and sum of what is durable. What was put aside waits in the VM itself, as it did at
# the source.
d_recv_state() { # MODE MODE-WHEN-SAVED
	d_lock state
	if [ "$1" = saved ]; then
		set -- ${2:+"--$2"}
		[ "${1:-}" = --paused ] || set --
		d_receive "hv-$q_hyp" --quiet restore --later "$@" -- "$q_name" - >"$d_job/receipt" || exit
		jq -r '"\(.bytes) \(.xxh128)"' "$d_job/receipt"
		return
	fi
	rm -f -- "$d_job/state" "$d_job/state.tmp"
	d_receive cat >"$d_job/state.tmp" || d_die 73 "the guest's state cannot be written"
	d_sync "$d_job/state.tmp"
	mv -- "$d_job/state.tmp" "$d_job/state" && d_sync "$d_job" || exit 74
	set -- "$(wc -c <"$d_job/state")" "$(xxh128sum <"$d_job/state")"
	printf '%d %s\n' "$1" "${2%% *}"
}

# ---- the VM ----

# The VM is defined on its copied disks, but pending: nobody can start it. The VM's document is on
# stdin.
d_stage() { # MODE STARTS NDISKS TARGET… NETWORK…
	d_lock
	d_store "$d_job/mode" "$1"
	d_store "$d_job/starts" "$2"
	d_n=$3
	shift 3
	while [ "$d_n" -gt 0 ]; do
		[ -f "$d_home/$1.vhd" ] || d_die 66 "$d_home/$1.vhd is not there"
		set -- "$@" --disk="$1=$d_home/$1.vhd"
		shift
		d_n=$((d_n - 1))
	done
	[ -z "$q_local" ] || return 0
	for d_arg; do
		shift
		case $d_arg in
		--disk=*) set -- "$@" "$d_arg" ;;
		*) set -- "$@" --network="$d_arg" ;;
		esac
	done
	case $(d_record) in
	"pending $q_token") d_hv undefine --pending="$q_token" -- "$q_name" || exit ;;
	"moved "* | "refused "*)
		# It was here before and left; its record must not stop it from coming back.
		d_same_vm && { d_hv undefine -- "$q_name" || exit; }
		;;
	esac
	vm-import --quiet --hypervisor="$q_hyp" --pending="$q_token" --name="$q_name" "$@" || exit
	d_sync "$d_home" "$q_dir"
}

d_record() { # "RECORD TOKEN" of the VM here
	d_hv status --json -- "$q_name" 2>/dev/null | jq -r '"\(.owner) \(.token // "-")"'
}

d_same_vm() {
	[ "$(d_hv status --json -- "$q_name" 2>/dev/null | jq -r .uuid)" = "$q_uuid" ]
}

# From the commit on. Each step is skipped if it is done, so this may be called until it succeeds.
# It goes on without the source. Tells: claimed, resumed STATE.
d_arrive() { # MODE
	trap '' HUP INT TERM
	d_lock
	if [ -z "$q_local" ]; then
		d_hv claim --token="$q_token" -- "$q_name" || exit
		d_tell claimed
	fi
	d_wake "${1:-$(d_read "$d_job/mode")}"
}

d_status() { # sets d_state, d_have: the start counter
	d_line=$(d_hv status --json -- "$q_name") || exit
	d_line=$(printf '%s\n' "$d_line" | jq -r '"\(.state) \(.starts)"')
	d_state=${d_line% *} d_have=${d_line#* }
}

d_wake() { # MODE
	if [ "$1" = off ]; then
		d_tell resumed off
		return 0
	fi
	d_status
	if [ "$1" = saved ]; then
		d_tell resumed "$d_state"
		return 0
	fi
	if [ ! -e "$d_job/state" ]; then
		[ -e "$d_job/state.used" ] || d_die 81 "the guest's state $d_job/state is not there"
		# It went on, or was about to; it may have ended since.
		if [ "$d_state/$1" = paused/running ]; then
			d_hv resume -- "$q_name" || exit
			d_state=running
		fi
		d_tell resumed "$d_state"
		return 0
	fi
	d_restore
	# From here on it counts as used, whether the CPUs go on or not.
	mv -- "$d_job/state" "$d_job/state.used" || d_die 81 "cannot rename $d_job/state"
	d_sync "$d_job"
	[ "$1" != running ] || d_hv resume -- "$q_name" ||
		d_die 81 "the guest is loaded but does not go on"
	d_tell resumed "$1"
}

# The same on the source's own disks, when a move on this host is taken back.
d_revive() { # MODE
	trap '' HUP INT TERM
	d_lock
	d_wake "$1"
}

# Whoever started the VM on its own disks meanwhile made the state stale.
d_restore() {
	d_limit=$(d_read "$d_job/starts")
	{ [ "$d_have" -le "$d_limit" ] && [ "$d_state" != running ]; } ||
		d_die 81 "the VM was started here without its saved state, which no longer fits its disks"
	[ "$d_state" = off ] || d_hv stop --force -- "$q_name" || exit
	d_store "$d_job/starts" $((d_have + 1))
	d_hv restore --paused -- "$q_name" "$d_job/state" || {
		d_status
		d_store "$d_job/starts" "$d_have"
		d_die 81 "the guest's state $d_job/state cannot be loaded"
	}
}

# ---- the end ----

d_finish() {
	[ -d "$d_job" ] || return 0
	d_lock
	rm -rf -- "$d_job"
	d_sync "$d_home"
}

# Takes back what has not been committed. 77: it is committed.
d_undo() {
	[ -d "$d_job" ] || return 0
	d_lock
	if [ -z "$q_local" ]; then
		case $(d_record) in
		"owner $q_token") d_die 77 "$q_name is owned by this host: it cannot be taken back" ;;
		"pending $q_token" | "refused $q_token")
			d_hv refuse --token="$q_token" -- "$q_name" &&
				d_hv undefine --pending="$q_token" -- "$q_name" || exit
			;;
		esac
	fi
	for d_t; do
		d_remove "$d_t"
	done
	rm -rf -- "$d_job"
	rmdir -- "$d_home" || d_die 73 "$d_home holds files that are not of this move"
	d_sync "$q_dir"
}

# Before the source takes back after the commit: durably no, whatever comes later.
d_refuse() {
	case $(d_record) in
	"owner $q_token") d_die 77 "$q_name is owned by this host" ;;
	esac
	d_hv refuse --token="$q_token" -- "$q_name"
}
