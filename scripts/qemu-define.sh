# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=sh
#
# How a VM comes, out of a domain or of disks that lie there, and goes.
# Part of hv-qemu, which sources it; most variables here are the script's.
# shellcheck disable=SC2034,SC2154

verb_define() { # [FILE|-]
	case $# in
	0) set -- - ;;
	1) ;;
	*) misuse "define: one file is wanted" ;;
	esac
	[ -z "$opt_pending" ] || token_ok "$opt_pending" ||
		misuse "--pending=T: letters, digits and ._:@+- are wanted"
	mkdir -p -- "$QSM_VM_DIR" || die 73 "cannot make $QSM_VM_DIR"
	new=$(mktemp -d "$QSM_VM_DIR/.new.XXXXXX") || die 73 "cannot make a folder in $QSM_VM_DIR"
	on_exit="$on_exit remove_new"
	if [ "$1" = - ]; then
		cat >"$new/source.xml"
	else
		[ -f "$1" ] || die 66 "$1 is not there"
		cat -- "$1" >"$new/source.xml"
	fi || die 74 "cannot copy the domain"
	find_vm_import
	# Once for what it lacks (a UUID, MACs), so that the second reading finds it.
	set -- --print
	[ -z "$opt_name" ] || set -- "$@" --name="$opt_name"
	"$vm_import" "$@" <"$new/source.xml" >"$new/full.xml" || exit $?
	load_domain "$new/full.xml"
	name=$dom_name uuid=$dom_uuid
	name_ok "$name" || die 65 "the domain has no name; --name=N gives it one"
	lock_file "$QSM_VM_DIR/.lock" "$QSM_VM_DIR"
	define_checks
	make_pointers
	set -- "$@" --machine="$(pinned_machine)"
	for i in $all_disks; do
		disk "$i"
		set -- "$@" --disk="$d_target=$QSM_VM_DIR/$name/disks/$d_target"
	done
	"$vm_import" "$@" <"$new/full.xml" >"$new/domain.xml" || exit $?
	rm -f -- "$new/source.xml" "$new/full.xml"
	publish_vm
}
new=''

remove_new() {
	[ -z "$new" ] || rm -rf -- "$new"
}

# "q35" is another machine tomorrow: what is defined is the one with the version.
pinned_machine() {
	case $dom_machine in
	*-*.*) ;;
	*)
		pinned=$("qemu-system-$dom_arch" -machine help 2>/dev/null |
			sed -n "s/^$dom_machine  *.*(alias of \\(.*\\))\$/\\1/p")
		dom_machine=${pinned:-$dom_machine}
		;;
	esac
	printf '%s' "$dom_machine"
}

# The folder of another VM that has the UUID of this one.
uuid_clash() {
	for d in "$QSM_VM_DIR"/*/; do
		for r in owner moved pending refused; do
			if [ -f "$d$r" ] && grep -qxF "vm $uuid" "$d$r"; then
				clash=${d%/}
				return 0
			fi
		done
	done
	return 1
}
clash=''

define_checks() {
	[ ! -e "$QSM_VM_DIR/$name" ] || die 73 "a VM \"$name\" is here already"
	! uuid_clash || die 73 "the VM $clash has the same UUID $uuid"
	for i in $all_disks; do
		disk "$i"
		disk_device "$d_bus" 0 || die 65 "disk $d_target: bus $d_bus is not supported"
		[ -n "$d_source" ] || die 65 "disk $d_target has no file"
		[ -e "$d_source" ] || die 66 "disk $d_target: $d_source is not there"
	done
}

make_pointers() {
	{ mkdir "$new/disks.1" && ln -s disks.1 "$new/disks"; } || die 73 "cannot write in $new"
	for i in $all_disks; do
		disk "$i"
		ln -s -- "$(absolute "$d_source")" "$new/disks.1/$d_target" ||
			die 73 "cannot write in $new"
	done
}

publish_vm() {
	printf '0\n' >"$new/starts"
	if [ -n "$opt_pending" ]; then
		printf 'vm %s\ntoken %s\n' "$uuid" "$opt_pending" >"$new/pending"
	else
		printf 'vm %s\ntoken -\n' "$uuid" >"$new/owner"
	fi
	[ -z "$opt_autostart" ] || : >"$new/autostart"
	[ -z "$opt_ha" ] || : >"$new/ha"
	[ -z "$opt_parent_dirs" ] || printf '%s' "$opt_parent_dirs" >"$new/parent-dirs"
	for f in domain.xml starts owner pending autostart ha parent-dirs; do
		[ ! -f "$new/$f" ] || durable "$new/$f"
	done
	durable "$new/disks.1" "$new"
	# -T: never into a folder that came meanwhile.
	mv -T -- "$new" "$QSM_VM_DIR/$name" 2>/dev/null || die 73 "a VM \"$name\" is here already"
	new=''
	durable "$QSM_VM_DIR"
	say "$name ($uuid) is defined${opt_pending:+, pending}"
}

verb_undefine() {
	one_vm "$@"
	lock_vm
	if [ -n "$opt_pending" ]; then
		case $record in
		pending | refused) ;;
		*) die 77 "$name is not pending: its record is \"$record\"" ;;
		esac
		[ "$rec_token" = "$opt_pending" ] || die 77 "$name is pending with another token"
	fi
	read_state
	[ "$state/$record" != saved/owner ] ||
		die 75 "$name is saved: start it, or discard what was saved, first"
	! qemu_alive || die 75 "$name is $state: stop it first"
	tear_down
	gone_dir=$QSM_VM_DIR/.gone.$$
	mv -- "$dir" "$gone_dir" || die 74 "cannot remove $dir"
	durable "$QSM_VM_DIR"
	rm -rf -- "$gone_dir" "$rd"
	say "$name is forgotten; its disks stay"
}

verb_flag() { # VM autostart|ha on|off
	[ $# -eq 3 ] || misuse "flag: a VM, a flag and on or off are wanted"
	find_vm "$1"
	case $2/$3 in
	autostart/on | ha/on) true >"$dir/$2" ;;
	autostart/off | ha/off) rm -f -- "$dir/$2" ;;
	*) misuse "flag: autostart or ha, on or off" ;;
	esac || die 74 "cannot change $dir/$2"
	durable "$dir"
}

# ---- adopt ----

# A leaf is what no other disk there has for its parent.
# shellcheck disable=SC2016
adopt_leaves='[.[].files[]] as $all | [$all[].parent.uuid // empty] as $parents |
	[$all[] | select(.format != "raw") | .uuid as $u | select($parents | index($u) | not) | .file] | sort'

verb_adopt() { # LEAF|DIR...
	[ $# -ge 1 ] || misuse "adopt: disks, or a folder with disks, are wanted"
	need vhd-info jq
	find_vm_import
	adopt_memory
	if [ -z "$opt_name" ]; then
		opt_name=$(basename -- "$(readlink -f -- "$1")")
		[ -d "$1" ] || opt_name=${opt_name%.*}
	fi
	adopt_dir=$(mktemp -d) || die 73 "cannot make a temporary folder"
	on_exit="$on_exit remove_adopt"
	: >"$adopt_dir/all"
	for a; do
		[ -e "$a" ] || die 66 "$a is not there"
		# A disk that is named is a leaf by that; in a folder the leaves have to be found.
		if [ -d "$a" ]; then
			a=$(absolute "$a")
			find "$a" -type f \( -iname '*.vhd' -o -iname '*.avhd' \) \
				-exec vhd-info --json --unlocked --quiet -- {} + >"$adopt_dir/found" ||
				die 65 "$a: not all disks there are sound"
			jq -cs "$adopt_leaves" "$adopt_dir/found" >>"$adopt_dir/all" || die 70 "jq failed"
			set_option parent_dir "$a"
		else
			jq -cn --arg f "$(absolute "$a")" '[$f]' >>"$adopt_dir/all"
		fi
	done
	adopt_xml >"$adopt_dir/domain.xml" || die 66 "no disk was found in $*"
	if [ -n "$opt_dry_run" ]; then
		"$vm_import" --print <"$adopt_dir/domain.xml"
	else
		verb_define "$adopt_dir/domain.xml"
	fi
}

remove_adopt() {
	rm -rf -- "$adopt_dir"
}

adopt_memory() {
	case $opt_memory in
	*[!0-9KMGT]* | *[KMGT]?* | [KMGT]* | '') misuse "--memory=$opt_memory: not a size" ;;
	*K) opt_memory=$((${opt_memory%K} << 10)) ;;
	*M) opt_memory=$((${opt_memory%M} << 20)) ;;
	*G) opt_memory=$((${opt_memory%G} << 30)) ;;
	*T) opt_memory=$((${opt_memory%T} << 40)) ;;
	esac
	case $opt_vcpus in
	'' | *[!0-9]*) misuse "--vcpus=$opt_vcpus: not a number" ;;
	esac
}

adopt_xml() {
	jq -ers --arg name "$opt_name" --arg memory "$opt_memory" --arg vcpus "$opt_vcpus" '
		def letter: [. + 97] | implode;
		add | if length == 0 or length > 26 then empty else
		"<domain type=\"qemu\"><name>\($name | @html)</name>",
		"<memory unit=\"b\">\($memory)</memory><vcpu>\($vcpus)</vcpu><devices>",
		(to_entries[] | "<disk type=\"file\" device=\"disk\"><source file=\"\(.value | @html)\"/>" +
			"<target dev=\"vd\(.key | letter)\" bus=\"virtio\"/></disk>"),
		"<interface type=\"user\"/></devices></domain>" end' "$adopt_dir/all"
}
