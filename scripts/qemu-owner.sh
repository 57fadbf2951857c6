# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=sh
#
# Who may run a VM: its record, and how that goes from one host to another.
# Part of hv-qemu, which sources it; most variables here are the script's.
# shellcheck disable=SC2034,SC2154

token_ok() { # TOKEN
	case $1 in
	'' | - | *[!A-Za-z0-9._:@+-]*) return 1 ;;
	esac
	[ ${#1} -le 200 ]
}

need_token() {
	token_ok "$opt_token" || misuse "--token=T: letters, digits and ._:@+- are wanted"
}

# Which record the VM has, and what it says. One of them exists, or the folder was tampered with.
read_record() {
	record=none rec_uuid='' rec_token='' rec_to=''
	for r in owner moved pending refused; do
		[ -f "$dir/$r" ] || continue
		record=$r
		while read -r key value; do
			case $key in
			vm) rec_uuid=$value ;;
			token) rec_token=$value ;;
			to) rec_to=$value ;;
			esac
		done <"$dir/$r"
		break
	done
}

# Every way to start the guest passes here.
need_owner() {
	case $record in
	owner) ;;
	moved) die 77 "$name has moved to ${rec_to:-another host}: it cannot run here" ;;
	pending) die 77 "$name has arrived but is not committed: it cannot run here yet" ;;
	refused) die 77 "$name was taken back by the host it came from: it cannot run here" ;;
	*) die 77 "$name has no owner record in $dir: it cannot run here" ;;
	esac
}

verb_yield() {
	one_vm "$@"
	need_token
	case $opt_to in
	'' | *"$NL"*) misuse "yield: --to=DEST is wanted, without a newline" ;;
	esac
	lock_vm
	if [ "$record/$rec_token" = "moved/$opt_token" ]; then
		return 0
	fi
	need_owner
	[ "$(cat "$dir/starts")" = "$opt_starts" ] ||
		die 75 "$name: its start counter is $(cat "$dir/starts"), not ${opt_starts:-given (--starts=N)}"
	read_state
	case $state in
	paused | handed-over | saved | off) ;;
	*) die 75 "$name is $state: it can only be given away while it stands still" ;;
	esac
	# The text first, so that the commit is one rename and nothing else.
	store "$dir/owner" "vm $uuid${NL}token $opt_token${NL}to $opt_to$NL"
	durable_rename "$dir" owner moved
}

# One durable rename, if the record has the token that is given. Done already is done.
settle() { # FROM TO VM
	find_vm "$3"
	need_token
	lock_vm
	[ "$rec_token" = "$opt_token" ] || die 77 "$name: its record \"$record\" has another token"
	case $record in
	"$2") ;;
	"$1") durable_rename "$dir" "$1" "$2" ;;
	*) die 77 "$name: its record is \"$record\", not \"$1\"" ;;
	esac
}

verb_reclaim() {
	[ $# -eq 1 ] || misuse "reclaim: one VM is wanted"
	settle moved owner "$1"
	[ -z "$rec_to" ] || store "$dir/owner" "vm $uuid${NL}token $opt_token$NL"
}

verb_claim() {
	[ $# -eq 1 ] || misuse "claim: one VM is wanted"
	settle pending owner "$1"
}

verb_refuse() {
	[ $# -eq 1 ] || misuse "refuse: one VM is wanted"
	settle pending refused "$1"
}

verb_switch() { # VM TARGET=LEAF...
	[ $# -ge 2 ] || misuse "switch: a VM and TARGET=LEAF for each disk are wanted"
	need_token
	find_vm "$1"
	shift
	lock_vm
	need_owner
	if [ "$(cat "$dir/disks/.token" 2>/dev/null)" = "$opt_token" ]; then
		return 0
	fi
	read_state
	[ "$state" != saved ] || tear_down
	! qemu_alive || die 75 "$name is $state: its processes must be gone"
	load_domain "$dir/domain.xml"
	[ $# -eq "$ndisks" ] || misuse "switch: the VM has $ndisks disks, $# are named"
	old=$(readlink -- "$dir/disks") || die 65 "$dir/disks is no symlink"
	next=disks.$((${old#disks.} + 1))
	rm -rf -- "${dir:?}/$next" "$dir/disks.tmp"
	mkdir "$dir/$next" || die 73 "cannot make $dir/$next"
	for a; do
		[ -L "$dir/disks/${a%%=*}" ] || misuse "switch: the VM has no disk ${a%%=*}"
		[ -f "${a#*=}" ] || die 66 "${a#*=} is not there"
		ln -s -- "$(absolute "${a#*=}")" "$dir/$next/${a%%=*}" ||
			die 73 "cannot make the pointer $dir/$next/${a%%=*}"
	done
	printf '%s\n' "$opt_token" >"$dir/$next/.token"
	ln -s "$next" "$dir/disks.tmp" || die 73 "cannot write in $dir"
	durable "$dir/$next/.token" "$dir/$next" "$dir"
	mv -fT -- "$dir/disks.tmp" "$dir/disks" || die 74 "cannot rename in $dir"
	durable "$dir"
	rm -rf -- "${dir:?}/$old"
}
