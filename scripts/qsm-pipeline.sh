#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# Moves a virtual machine, running or not, to another host or to other storage: qsm-pipeline(1).
# The stages are in qsm-stages.sh, what they stand on is in qsm-job.sh, and qsm-dest.sh is what runs
# on the destination. Here: options, the job, what can go wrong, and the walk through the stages.
set -u
umask 077
LC_ALL=C
export LC_ALL

VERSION=0.1.0

usage() {
	cat <<'TEXT'
Usage: qsm-pipeline.sh [OPTION]... VM [USER@]HOST:DIR
       qsm-pipeline.sh [OPTION]... VM DIR
Moves the virtual machine VM with its disks to DIR/VM on HOST, or to other storage on this host. The
same command goes on with a move that was interrupted.

      --plan                 preflight only: everything that stands in the way
      --abort                take back a move that is not committed
      --settle=source|destination
                             decide by hand who owns the VM after exit status 81
      --i-fenced-the-other   with --settle: the other host is off and stays off
      --network=(MAC|OLD)=NEW
                             a network card's network at the destination (repeatable)
      --name=NAME            another name at the destination
      --hypervisor=H         the adapter is hv-H on both sides (default: qemu)
      --ssh=COMMAND          how to reach HOST (default: ssh, never asking)
      --remote-sudo          work with sudo -n on HOST
      --remote-path=DIR      the tools on HOST lie in DIR
      --rate-limit=RATE      copy at most RATE bytes a second (10M, 100mbit)
      --compress[=LEVEL]     compress what is sent (level 1 to 19)
      --retry=TIME           how long to try to reach HOST again (default: 5m)
      --reserve=SIZE         stop when less is free beside the source's disks (default: 256M)
      --merge=before         merge the last AVHDs before the VM goes on (the only way so far)
      --delete-source        delete the source's disks at the end
      --report=FILE          write the report, in JSON, to FILE
      --json                 the result is JSON
      --progress=json        progress of each disk as JSON lines on stderr
  -q, --quiet                no messages but errors
  -h, --help                 this text
  -V, --version              the version
TEXT
}

# ---- where things are ----

self=$(readlink -f -- "$0")
here=${self%/*}
parts=''
for d in "$here" "$here/../share/qsm-tools" /usr/local/share/qsm-tools /usr/share/qsm-tools; do
	if [ -f "$d/qsm-job.sh" ] && [ -f "$d/qsm-stages.sh" ] && [ -f "$d/qsm-dest.sh" ]; then
		parts=$d
		break
	fi
done
if [ -z "$parts" ]; then
	echo "qsm-pipeline: its parts, qsm-job.sh, qsm-stages.sh and qsm-dest.sh, are not beside it" >&2
	exit 69
fi

. "$parts/qsm-job.sh"
. "$parts/qsm-stages.sh"
PATH=$here:$PATH:/usr/sbin:/sbin
export PATH

hv() {
	"hv-$opt_hypervisor" --quiet "$@"
}

# ---- options ----

opt_quiet='' opt_json='' opt_plan='' opt_abort='' opt_settle='' opt_fenced='' opt_name=''
opt_hypervisor=qemu opt_ssh='' opt_sudo='' opt_path='' opt_rate='' opt_compress='' opt_retry=300 opt_reserve=268435456
opt_delete='' opt_progress='' opt_report='' opt_vm='' opt_dest='' opt_networks=''

option() { # ARGUMENT
	case $1 in
	--plan) opt_plan=1 ;;
	--abort) opt_abort=1 ;;
	--settle=source | --settle=destination) opt_settle=${1#*=} ;;
	--i-fenced-the-other) opt_fenced=1 ;;
	--network=?*=?*)
		quote "${1#*=}"
		opt_networks="$opt_networks $quoted"
		;;
	--name=?*) opt_name=${1#*=} ;;
	--hypervisor=?*) opt_hypervisor=${1#*=} ;;
	--ssh=?*) opt_ssh=${1#*=} ;;
	--remote-sudo) opt_sudo=1 ;;
	--remote-path=?*) opt_path=${1#*=} ;;
	--rate-limit=?*) opt_rate=$1 ;;
	--compress | --compress=?*) opt_compress=$1 ;;
	--retry=?*)
		duration_of "${1#*=}" || misuse "$1: a time as 30s, 5m or 1h is wanted"
		opt_retry=$duration
		;;
	--reserve=?*)
		size_of "${1#*=}" || misuse "$1: a size as 512M or 10G is wanted"
		opt_reserve=$size
		;;
	--merge=before) ;;
	--merge=*) misuse "$1: only --merge=before is there, the VM resumes on merged disks" ;;
	--delete-source) opt_delete=1 ;;
	--report=?*) opt_report=${1#*=} ;;
	--json) opt_json=1 ;;
	--progress=json) opt_progress=$1 ;;
	-q | --quiet) opt_quiet=1 ;;
	-h | --help)
		usage || exit 74
		exit 0
		;;
	-V | --version)
		printf 'qsm-pipeline.sh (qsm-tools) %s\n' "$VERSION" || exit 74
		exit 0
		;;
	*) misuse "$1: no such option, or not with such a value" ;;
	esac
}

name_ok() { # NAME: fit for a VM and a folder
	case $1 in
	'' | .* | */* | *"$NL"*) return 1 ;;
	esac
}

# A colon before any slash means a host, as in scp.
destination() { # ARGUMENT
	far_local='' far_host='' far_dir=$1
	case ${1%%/*} in
	*:*)
		far_host=${1%%:*} far_dir=${1#*:}
		case $far_host in
		'' | -* | *[!A-Za-z0-9@._%-]*) misuse "$1: not a host" ;;
		esac
		[ -n "$far_dir" ] || far_dir=.
		;;
	*)
		far_local=1 far_host=$(uname -n)
		case $1 in
		'') misuse "a folder is wanted" ;;
		/*) ;;
		*) far_dir=$(pwd)/$1 ;;
		esac
		;;
	esac
	[ "$far_dir" = / ] || far_dir=${far_dir%/}
	dest=$far_dir
	[ -n "$far_local" ] || dest=$far_host:$far_dir
}

# Bytes a second of a rate as --rate-limit takes it.
rate_of() { # RATE
	case $1 in
	*bit)
		rate=${1%[kKmMgG]bit}
		number "$rate" || return 1
		case $1 in
		*[kK]bit) rate=$((rate * 125)) ;;
		*[mM]bit) rate=$((rate * 125000)) ;;
		*) rate=$((rate * 125000000)) ;;
		esac
		;;
	*)
		size_of "$1" || return 1
		rate=$size
		;;
	esac
}
rate=0

check_options() {
	case $opt_hypervisor in
	*[!A-Za-z0-9_-]*) misuse "--hypervisor=$opt_hypervisor: letters, digits, - and _ are wanted" ;;
	esac
	name_ok "$opt_vm" || misuse "\"$opt_vm\" is no name of a VM"
	[ -z "$opt_name" ] || name_ok "$opt_name" || misuse "--name=$opt_name: not a name for a VM"
	if [ -n "$far_local" ] && [ -n "$opt_name$opt_networks" ]; then
		misuse "--name and --network are for a move to another host"
	fi
	if [ -n "$opt_fenced" ] && [ -z "$opt_settle" ]; then
		misuse "--i-fenced-the-other belongs to --settle"
	fi
	case $opt_plan$opt_abort${opt_settle:+1} in
	11*) misuse "only one of --plan, --abort and --settle" ;;
	esac
	far_path=$opt_path far_hyp=$opt_hypervisor far_uuid='' far_token=''
	: "${opt_ssh:=ssh}"
	# Nobody is there to be asked, and a link that is cut must be noticed. What --ssh says itself
	# counts first.
	case ${opt_ssh%% *} in
	ssh | */ssh)
		opt_ssh="$opt_ssh -T -x -o BatchMode=yes -o ConnectTimeout=15"
		opt_ssh="$opt_ssh -o ServerAliveInterval=3 -o ServerAliveCountMax=4"
		;;
	esac
}

set_places() {
	if [ "$(id -u)" -eq 0 ]; then
		state_dir=${QSM_STATE_DIR:-/var/lib/qsm}
	else
		state_dir=${QSM_STATE_DIR:-${XDG_STATE_HOME:-$HOME/.local/state}/qsm}
	fi
	mkdir -p -- "$state_dir" || die 73 "cannot make $state_dir"
	key=$(printf '%s' "$dest" | tr -c 'A-Za-z0-9._@-' '_' | cut -c 1-80)
	key=$key-$(printf '%s' "$dest" | cksum | cut -d ' ' -f 1)
}

# ---- the VM ----

# What the adapter says of the VM here: v_*.
status() {
	status_json=$(hv status --json -- "$opt_vm") || return
	status_vars=$(printf '%s\n' "$status_json" | jq -r '
		def v($n; $x): "\($n)=\($x // "" | tostring | @sh)";
		v("v_uuid"; .uuid), v("v_state"; .state), v("v_reason"; .reason), v("v_owner"; .owner),
		v("v_token"; .token), v("v_starts"; .starts),
		v("v_saved_mode"; .saved.mode), v("v_saved"; .saved.bytes // 0),
		v("v_resident"; .resident // .memory // 0), v("v_written"; [.disks[].written // 0] | add // 0),
		v("v_parents"; .parent_dirs // [] | join(":")), v("v_memory"; .memory // 0),
		v("v_ndisks"; .disks | length),
		(.disks | to_entries[] | "v_\(.key)_" as $p | .value
			| v("\($p)target"; .target), v("\($p)leaf"; .leaf), v("\($p)control"; .control),
			  v("\($p)serving"; .serving))') || die 69 "jq failed on what hv-$opt_hypervisor says"
	eval "$status_vars"
	# Where the parents of its disks may lie is as true for the tools as for its disk servers.
	QSM_PARENT_PATH=$v_parents${parent_path:+:$parent_path}
	QSM_PARENT_PATH=${QSM_PARENT_PATH#:}
	export QSM_PARENT_PATH
	[ -n "$QSM_PARENT_PATH" ] || unset QSM_PARENT_PATH
}
parent_path=${QSM_PARENT_PATH:-}
v_parents='' v_uuid='' v_state='' v_reason='' v_owner='' v_token='' v_starts=0 v_memory=0 v_ndisks=0
v_saved_mode='' v_saved=0 v_resident=0 v_written=0

must_status() {
	status || die 81 "hv-$opt_hypervisor does not tell the state of $opt_vm"
}

# The targets, quoted, in targets.
list_targets() {
	targets='' n=0
	while [ "$n" -lt "$a_ndisks" ]; do
		disk "$n"
		quote "$target"
		targets="$targets $quoted"
		n=$((n + 1))
	done
}

# ---- the job ----

# The folder of this move. The VM may be gone from here already: then an old job tells.
find_job() {
	if status; then
		:
	elif [ $? -eq 66 ]; then
		for d in "$state_dir"/*."$key"; do
			[ -f "$d/attempt" ] || continue
			load_attempt "$d"
			[ "$a_vm" = "$opt_vm" ] || continue
			v_uuid=$a_uuid v_owner=none v_state=off
		done
		[ -n "$v_uuid" ] || die 78 "there is no VM $opt_vm here"
	else
		die 78 "hv-$opt_hypervisor does not tell the state of $opt_vm"
	fi
	job=$state_dir/$v_uuid.$key
	far_uuid=$v_uuid far_name=${opt_name:-$opt_vm}
}

load_attempt() { # FOLDER
	a_token='' a_vm='' a_uuid='' a_dest='' a_name='' a_was='' a_starts='' a_ndisks=0
	# Written by store_attempt, in a folder that only its owner reads and writes.
	# shellcheck disable=SC1091
	. "$1/attempt" || die 74 "cannot read $1/attempt"
}

open_job() {
	lock_job
	# Only now: another run's files would be there.
	tmp=$state_dir/$v_uuid.tmp
	rm -rf -- "$tmp"
	replay
	# By now nothing changes but by this process.
	if [ "$v_owner" != none ]; then must_status; fi
	if [ -f "$job/attempt" ] && [ -n "$j_open$j_finished$j_aborted" ]; then
		load_attempt "$job"
		far_token=$a_token far_name=$a_name
	fi
	mkdir -p -- "$tmp" || die 73 "cannot make $tmp"
}

# Another move of the same VM that is not over.
other_job() {
	for d in "$state_dir/$v_uuid".*/; do
		d=${d%/}
		if [ ! -f "$d/journal" ] || [ "$d" = "$job" ]; then
			continue
		fi
		this=$job job=$d
		replay
		job=$this
		[ -n "$j_open" ] || continue
		load_attempt "$d"
		block "a move of $opt_vm to $a_dest is not over: finish it, or take it back with --abort"
	done
	replay
}

new_attempt() {
	a_token=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
	a_vm=$opt_vm a_uuid=$v_uuid a_dest=$dest a_name=$far_name
	a_ndisks=$v_ndisks
	case $v_state in
	running | paused | saved) a_was=$v_state ;;
	*) a_was=off ;;
	esac
	a_starts=$v_starts
	n=0
	while [ "$n" -lt "$a_ndisks" ]; do
		eval "a_${n}_target=\$v_${n}_target a_${n}_base=\$v_${n}_leaf"
		n=$((n + 1))
	done
	mkdir -p -- "$job" || die 73 "cannot make $job"
	make_durable "$state_dir"
	store_attempt
	note begin "$a_token"
	replay
	far_token=$a_token
}

# ---- what can go wrong ----

# The job stays as it is, and so does the VM: on its AVHDs, if it is running.
resumable() { # WHY
	stop_watching
	warn "$stage: $1"
	warn "The same command goes on from here; with --abort it takes the move back."
	die 75 "$opt_vm is not moved yet and is $v_state here${j_checkpoint:+, on its checkpoint}"
}

# Before the commit: durably no, then the guest goes on here, then the other side is tidied up.
rollback() { # WHY
	trap '' INT TERM HUP
	stop_watching
	warn "$stage: $1"
	note aborted
	revive
	tidy_far ||
		warn "what was copied is still at $dest; this command with --abort removes it when $far_host answers"
	where_it_stands
	die 80 "$opt_vm is not moved and is $v_state here${stands:+; $stands}"
}

# What was paused for the move goes on. A guest that was found paused stands still after a save in a
# way that cannot be saved again; it is made as it was, at the price of a moment in which it runs.
wake() {
	case $a_was/$v_state in
	running/paused | running/handed-over) ;;
	paused/handed-over) ;;
	*) return 0 ;;
	esac
	hv resume -- "$opt_vm" || hv resume -- "$opt_vm" ||
		die 81 "$opt_vm stands still here and does not go on: hv-$opt_hypervisor resume $opt_vm"
	[ "$a_was" = running ] || hv pause -- "$opt_vm" || warn "$opt_vm was paused and runs now"
	must_status
}

# The guest is again as it was found.
revive() {
	must_status
	case $v_owner in
	owner) ;;
	*) die 81 "$opt_vm: its record here is \"$v_owner\", so it does not go on here" ;;
	esac
	if [ -n "$far_local" ] && [ "$v_state" = off ] && [ -n "$j_yielding" ]; then
		[ "$(yield_mode)" = off ] || far d_revive "$(yield_mode)" >/dev/null ||
			die 81 "$opt_vm was saved and does not go on; its state is $far_dir/$far_name/.qsm/state"
	elif [ -n "$j_pausing" ]; then
		wake
	fi
	must_status
	if [ -n "$j_pausing" ] && [ "$a_was" = running ]; then
		case $v_state in
		running) ;;
		*) warn "$opt_vm was running and is $v_state now" ;;
		esac
		note running
		j_pausing=''
	fi
}

tidy_far() {
	list_targets
	eval "far d_undo $targets" || return
	note rolledback
}

where_it_stands() {
	stands='' n=0
	while [ "$n" -lt "$a_ndisks" ]; do
		disk "$n"
		[ "$leaf" = "$base" ] || stands="$stands, disk $target on $leaf above $base"
		n=$((n + 1))
	done
	stands=${stands#, }
}

# After the commit, without an answer that the guest goes on.
doubt() {
	if [ -n "$far_local" ]; then
		warn "The same command goes on when what stands above is mended."
		die 81 "$opt_vm is saved in $far_dir/$far_name/.qsm/state and does not go on (status $arrive_status)"
	fi
	what="failed with status $arrive_status"
	! cut_off "$arrive_status" || what="does not answer"
	warn "$opt_vm belongs to $far_host since the commit, and $far_host $what."
	warn "It stands still here, and must not run at both."
	warn "The same command goes on when $far_host is there again."
	warn "To take it back: the same command with --settle=source, if $far_host can be asked,"
	warn "or with --settle=source --i-fenced-the-other, if it is off and stays off."
	warn "If this host is lost, on $far_host:"
	quote "$a_name"
	what=$quoted
	quote "$far_dir"
	warn "    qsm-pipeline.sh --settle=destination --i-fenced-the-other $what $quoted"
	die 81 "$opt_vm: not known to run anywhere"
}

# ---- --abort, --settle ----

abort_move() {
	stage=abort
	if [ -z "$j_open" ]; then
		say "no move of $opt_vm to $dest is under way"
		exit 0
	fi
	look_for_commit
	if [ -n "$j_yielded" ]; then
		warn "The same command without --abort goes on; --settle=source takes the VM back."
		die 81 "$opt_vm belongs to $far_host since the commit: --abort comes too late"
	fi
	rollback "taken back on demand"
}

# The same command after the commit, when a person decides.
settle() {
	stage=settle
	if [ "$opt_settle" = destination ]; then
		case $v_owner in
		pending) settle_here ;;
		*) [ -n "$j_open" ] || die 64 "no move of $opt_vm to $dest waits to be settled" ;;
		esac
		return
	fi
	look_for_commit
	if [ -z "$j_open" ] || [ -z "$j_yielded" ] || [ -n "$far_local" ]; then
		die 64 "no committed move of $opt_vm to $dest waits to be settled"
	fi
	[ -z "$j_resumed" ] || die 81 "$opt_vm runs at $far_host: it cannot be taken back"
	far d_refuse
	d=$?
	if cut_off "$d"; then
		[ -n "$opt_fenced" ] ||
			die 81 "$far_host does not answer: only if it is off and stays off, add --i-fenced-the-other"
	elif [ "$d" -ne 0 ] && [ "$d" -ne 66 ]; then
		die 81 "$far_host does not give $opt_vm back (status $d)"
	fi
	hv reclaim --token="$a_token" -- "$opt_vm" || die 81 "$opt_vm cannot be taken back here"
	note settled source
	revive
	tidy_far || warn "what was copied is still at $dest"
	say "$opt_vm is this host's again, and $v_state"
	exit 0
}

# On the destination, when the source is lost: the VM is complete here, only the word was missing.
settle_here() {
	[ -n "$far_local" ] || die 64 "$opt_vm has arrived here: name its folder, not a host"
	if [ -z "$opt_fenced" ]; then
		warn "Only if the host that $opt_vm came from is off and stays off, add --i-fenced-the-other."
		die 81 "$opt_vm may still run where it came from"
	fi
	far_token=$v_token far_local='' far_name=$opt_vm
	far_here=1
	far d_arrive '' >/dev/null || die 81 "$opt_vm does not go on here (status $?)"
	far d_finish || warn "$far_dir/$far_name/.qsm is still there"
	must_status
	say "$opt_vm is this host's, and $v_state"
	exit 0
}
far_here=''

# ---- main ----

finished_before() {
	[ -n "$j_finished" ] || return 1
	if [ -n "$far_local" ]; then
		on_new_disks || return 1
	else
		case $v_owner/$v_token in
		none/* | moved/"$a_token") ;;
		*) return 1 ;;
		esac
	fi
	[ -z "$opt_delete" ] || [ -n "$j_deleted" ] || delete_source
	say "the move of $opt_vm to $dest is finished already"
	report
}

# The stages up to the commit; whatever fails in one of them does not come back.
go() {
	wake_source
	checkpoint
	copy
	[ -z "$interrupted" ] || resumable "interrupted"
	stage_vm
	save
	commit
}

move() {
	! finished_before || return 0
	if [ -n "$j_open" ]; then
		stage=resume
		look_for_commit
		if [ -n "$j_aborted" ] && [ -z "$j_yielded" ]; then
			revive
			tidy_far ||
				die 75 "what an earlier attempt left at $dest is still there, $far_host does not answer"
			j_open=''
		elif [ -z "$j_yielded" ]; then
			say "going on with the move of $opt_vm to $dest"
		fi
	fi
	if [ -z "$j_open" ]; then
		stage=preflight
		preflight
		[ ! -s "$tmp/blockers" ] || refuse
		predict
		new_attempt
		note predicted "${predicted:--}"
		j_predicted=$predicted
		end_stage 0
	fi
	[ -n "$j_yielded" ] || go
	arrive
	finish
}

clean_up() {
	code=$?
	trap '' INT TERM HUP
	trap - EXIT
	stop_watching
	[ -z "$tmp" ] || stop_sending
	[ -z "$opt_json" ] || [ "$code" -eq 0 ] || failure_json "$code"
	[ -z "$tmp" ] || rm -rf -- "$tmp"
	exit "$code"
}
tmp='' interrupted='' job=''

interrupt() {
	interrupted=1
	warn "interrupted"
	[ -n "$tmp" ] || return 0
	true 2>/dev/null >"$tmp/interrupted"
	stop_sending
}

only=''
for arg; do
	case $only$arg in
	--) only=x ;;
	-?*) option "$arg" ;;
	*)
		if [ -z "$opt_vm" ]; then
			opt_vm=$arg
		elif [ -z "$opt_dest" ]; then
			opt_dest=$arg
		else
			misuse "$arg: one VM and one destination are wanted"
		fi
		;;
	esac
done
[ -n "$opt_dest" ] || misuse "a VM and a destination are wanted"
destination "$opt_dest"
check_options
set_places
trap clean_up EXIT
trap interrupt INT TERM HUP
find_job
if [ -n "$opt_plan" ]; then
	tmp=$(mktemp -d) || die 73 "cannot make a temporary folder"
	preflight
	predict
	show_plan
fi
open_job
if [ -n "$opt_abort" ]; then
	abort_move
fi
[ -z "$opt_settle" ] || settle
move
