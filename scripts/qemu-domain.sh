# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=sh
#
# The domain XML as variables, and what QEMU has for each device in it.
# Part of hv-qemu, which sources it; most variables here are the script's.
# shellcheck disable=SC2034,SC2154

# The document tool: beside this script (also through a symlink), or in PATH.
find_vm_import() {
	vm_import=$(dirname "$0")/vm-import
	[ -x "$vm_import" ] || vm_import=$(command -v vm-import) ||
		die 69 "vm-import is needed and neither beside hv-qemu nor in PATH"
}

# All of the domain as shell variables, dom_* and disk_I_*, nic_I_*.
load_domain() { # FILE
	find_vm_import
	dom_json=$("$vm_import" --print=json <"$1") || exit $?
	dom_vars=$(printf '%s\n' "$dom_json" | jq -r '
		def v($n; $x): "\($n)=\($x // "" | tostring | @sh)";
		v("dom_name"; .name), v("dom_uuid"; .uuid), v("dom_machine"; .machine),
		v("dom_arch"; .arch), v("dom_type"; .type), v("dom_cpu"; .cpu),
		v("dom_memory"; .memory), v("dom_vcpus"; .vcpus), v("dom_kernel"; .kernel),
		v("dom_initrd"; .initrd), v("dom_cmdline"; .cmdline),
		v("dom_unmovable"; .unmovable | join(", ")),
		v("ndisks"; .disks | length), v("all_disks"; [range(.disks | length)] | join(" ")),
		v("all_nics"; [range(.nics | length)] | join(" ")),
		(.disks | to_entries[] | .key as $i | .value | to_entries[] | v("disk_\($i)_\(.key)"; .value)),
		(.nics | to_entries[] | .key as $i | .value | to_entries[] | v("nic_\($i)_\(.key)"; .value))
		') || die 69 "jq failed on $1"
	eval "$dom_vars"
}
dom_name='' dom_uuid='' dom_machine='' dom_arch='' dom_type='' dom_cpu='' dom_memory=0 dom_vcpus=1
dom_kernel='' dom_initrd='' dom_cmdline='' dom_unmovable='' ndisks=0 all_disks='' all_nics=''

disk() { # INDEX
	eval "d_target=\$disk_$1_target d_bus=\$disk_$1_bus d_source=\$disk_$1_source"
	eval "d_serial=\$disk_$1_serial d_readonly=\$disk_$1_readonly d_boot=\$disk_$1_boot"
}
d_target='' d_bus='' d_source='' d_serial='' d_readonly='' d_boot=0

nic() { # INDEX
	eval "n_mac=\$nic_$1_mac n_type=\$nic_$1_type n_model=\$nic_$1_model"
	eval "n_network=\$nic_$1_network n_boot=\$nic_$1_boot"
}
n_mac='' n_type='' n_model='' n_network='' n_boot=0

# The QEMU device of a bus or model, or failure.
disk_device() { # BUS INDEX-ON-THAT-BUS
	case $1 in
	virtio) disk_dev=virtio-blk-pci ;;
	sata) disk_dev=ide-hd,bus=ide.$2 ;;
	ide) disk_dev=ide-hd,bus=ide.$(($2 / 2)),unit=$(($2 % 2)) ;;
	scsi) disk_dev=scsi-hd,bus=scsi0.0,scsi-id=$2 ;;
	*) return 1 ;;
	esac
}

nic_device() { # MODEL
	case $1 in
	virtio) nic_dev=virtio-net-pci ;;
	e1000 | e1000e | rtl8139) nic_dev=$1 ;;
	*) return 1 ;;
	esac
}

# The -netdev of the NIC that nic() has read; the text tells what is missing otherwise.
nic_netdev() {
	netdev='' net_missing=''
	case $n_type in
	user) netdev=user ;;
	bridge)
		case $n_network in
		'' | */* | *,*) net_missing="bridge \"$n_network\" is no bridge" ;;
		*)
			if [ -d "/sys/class/net/$n_network" ]; then
				netdev=bridge,br=$n_network
			else
				net_missing="bridge $n_network does not exist here"
			fi
			;;
		esac
		;;
	network)
		if name_ok "$n_network" && [ -f "$QSM_NET_DIR/$n_network" ]; then
			IFS= read -r netdev <"$QSM_NET_DIR/$n_network"
			[ -n "$netdev" ] || net_missing="$QSM_NET_DIR/$n_network is empty"
		else
			net_missing="network $n_network does not exist here (no file in $QSM_NET_DIR)"
		fi
		;;
	*) net_missing="a network card of type $n_type is not supported" ;;
	esac
	[ -z "$net_missing" ]
}
