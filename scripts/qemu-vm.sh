# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=sh
#
# Where VMs lie, their locks, and changes of files that last.
# Part of hv-qemu, which sources it; most variables here are the script's.
# shellcheck disable=SC2034,SC2154

set_places() {
	if [ "$(id -u)" -eq 0 ]; then
		: "${QSM_VM_DIR:=/var/lib/qsm/vms}" "${QSM_RUN_DIR:=/run/qsm}"
	else
		: "${QSM_VM_DIR:=${XDG_DATA_HOME:-$HOME/.local/share}/qsm/vms}"
		if [ -z "${QSM_RUN_DIR:-}" ] && [ -z "${XDG_RUNTIME_DIR:-}" ]; then
			# /tmp is everybody's: the folder must be ours.
			mkdir -p "/tmp/qsm-$(id -u)"
			[ -n "$(find "/tmp/qsm-$(id -u)" -prune -type d -user "$(id -u)")" ] ||
				die 77 "/tmp/qsm-$(id -u) belongs to somebody else"
		fi
		: "${QSM_RUN_DIR:=${XDG_RUNTIME_DIR:-/tmp/qsm-$(id -u)}/qsm}"
	fi
	: "${QSM_NET_DIR:=/etc/qsm/networks}"
	case $QSM_VM_DIR$QSM_RUN_DIR in
	*"$NL"*) die 64 "QSM_VM_DIR and QSM_RUN_DIR cannot hold a newline" ;;
	esac
	QSM_VM_DIR=$(absolute "$QSM_VM_DIR") QSM_RUN_DIR=$(absolute "$QSM_RUN_DIR")
}

absolute() { # PATH
	case $1 in
	/*) printf '%s' "$1" ;;
	*) printf '%s/%s' "$(pwd)" "$1" ;;
	esac
}

durable() { # FILE|DIR...
	sync -- "$@" || die 74 "cannot sync $1"
}

# FILE durably holds TEXT; whoever reads it meanwhile sees the old text or the new.
store() { # FILE TEXT
	printf '%s' "$2" >"$1.tmp" || die 74 "cannot write $1"
	durable "$1.tmp"
	mv -f -- "$1.tmp" "$1" || die 74 "cannot rename $1"
	durable "$(dirname "$1")"
}

# A rename that is known to have happened when this returns.
durable_rename() { # DIR OLD NEW
	mv -f -- "$1/$2" "$1/$3" || die 74 "cannot rename $1/$2 to $3"
	durable "$1"
}

sum_of() { # FILE: sets sum
	sum=$(xxh128sum <"$1") || die 74 "cannot read $1"
	sum=${sum%% *}
}
sum=''

name_ok() { # NAME
	case $1 in
	'' | .* | */*) return 1 ;;
	esac
}

find_vm() { # NAME
	name_ok "$1" || die 66 "no VM \"$1\""
	name=$1
	dir=$QSM_VM_DIR/$name
	[ -f "$dir/domain.xml" ] || die 66 "no VM \"$name\" in $QSM_VM_DIR"
	read_record
	uuid=$rec_uuid
	if [ -z "$uuid" ]; then
		load_domain "$dir/domain.xml"
		uuid=$dom_uuid
	fi
	case $uuid in
	*[!0-9a-f-]* | '') die 65 "$dir/$record names no UUID" ;;
	esac
	rd=$QSM_RUN_DIR/$uuid
}

# One command a VM at a time; the lock ends with the process, its children do not inherit it.
lock_vm() {
	mkdir -p -- "$QSM_RUN_DIR" || die 73 "cannot make $QSM_RUN_DIR"
	lock_file "$QSM_RUN_DIR/$uuid.lock" "$name"
	[ -d "$dir" ] || die 66 "no VM \"$name\""
	locked=1
	read_record # it may have changed while we waited
}
locked=''

lock_file() { # FILE WHAT
	need flock
	true >>"$1" || die 73 "cannot open $1"
	exec 9>>"$1"
	lock_tries=0
	until flock -n 9; do
		lock_tries=$((lock_tries + 1))
		[ $lock_tries -lt 300 ] || die 75 "another command works on $2"
		sleep 0.1
	done
}
