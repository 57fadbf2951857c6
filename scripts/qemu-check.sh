# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=sh
#
# Whether a VM can run on this host: every reason why not.
# Part of hv-qemu, which sources it; most variables here are the script's.
# shellcheck disable=SC2034,SC2154

block() { # MESSAGE
	blockers="$blockers$1$NL"
}
blockers=''

verb_check_host() {
	[ $# -eq 0 ] || misuse "check-host: the domain is read from stdin"
	check_in=$(mktemp) || die 73 "cannot make a temporary file"
	on_exit="$on_exit remove_check_in"
	cat >"$check_in"
	load_domain "$check_in"
	check_programs
	check_machine
	check_files
	check_devices
	check_clash
	if [ -n "$opt_json" ]; then
		printf '%s' "$blockers" | jq -cRs 'split("\n")[:-1] |
			{version: 1, ok: (. == []), blockers: .}'
	else
		printf '%s' "$blockers"
	fi || die 74 "cannot write the answer"
	[ -z "$blockers" ] || exit 78
}

remove_check_in() {
	rm -f -- "$check_in"
}

check_programs() {
	for p in nbdkit jq socat flock setsid xxh128sum; do
		command -v "$p" >/dev/null 2>&1 || block "$p is not installed"
	done
	! command -v nbdkit >/dev/null 2>&1 ||
		nbdkit --dump-plugin "${QSM_PLUGIN:-vhd}" >/dev/null 2>&1 ||
		block "nbdkit has no vhd plugin (QSM_PLUGIN names one that lies elsewhere)"
}

check_machine() {
	qemu=qemu-system-$dom_arch
	if ! command -v "$qemu" >/dev/null 2>&1; then
		block "$qemu is not installed"
		return
	fi
	case $("$qemu" -machine help 2>/dev/null | grep -e "^$dom_machine ") in
	'') block "machine type $dom_machine is unknown to $("$qemu" --version | head -n 1)" ;;
	*'(alias of'*) block "machine type $dom_machine is an alias; one with a version is wanted" ;;
	esac
	if [ "$dom_type" = kvm ] && ! { [ -r /dev/kvm ] && [ -w /dev/kvm ]; }; then
		block "the VM needs KVM, and /dev/kvm cannot be used"
	fi
	if [ "${dom_cpu%%,*}" = host ]; then
		block "CPU \"host\" is another on every host; a named model is wanted"
	else
		"$qemu" -cpu help 2>/dev/null | grep -qwF -e "${dom_cpu%%,*}" ||
			block "CPU model ${dom_cpu%%,*} is unknown to $qemu"
	fi
	free=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo 2>/dev/null)
	[ -z "$free" ] || [ "$((dom_memory / 1024))" -le "$free" ] ||
		block "the VM needs $((dom_memory / 1048576)) MiB of memory, $((free / 1024)) MiB are free"
	[ -z "$dom_unmovable" ] || block "not supported, or bound to a host: $dom_unmovable"
}

check_files() {
	for f in "$dom_kernel" "$dom_initrd"; do
		[ -z "$f" ] || { [ -f "$f" ] && [ -r "$f" ]; } || block "$f is not there, or not readable"
	done
}

check_devices() {
	for i in $all_disks; do
		disk "$i"
		disk_device "$d_bus" 0 || block "disk $d_target: bus $d_bus is not supported"
	done
	for i in $all_nics; do
		nic "$i"
		nic_device "$n_model" || block "network card $n_mac: model $n_model is not supported"
		nic_netdev || block "network card $n_mac: $net_missing"
	done
}

check_clash() {
	name=$dom_name uuid=$dom_uuid
	if name_ok "$name" && [ -e "$QSM_VM_DIR/$name" ]; then
		dir=$QSM_VM_DIR/$name
		read_record
		case $record/$rec_uuid in
		# It left and comes back: who defines it then forgets this record first.
		moved/"$uuid" | refused/"$uuid") ;;
		*) block "a VM \"$name\" is here already (record: $record)" ;;
		esac
	elif uuid_clash; then
		block "the VM $clash has the same UUID $uuid"
	fi
}
