# SPDX-License-Identifier: BSD-2-Clause
# A document becomes a VM, or nothing does: mappings, checks, hostile input.
load helper

setup() {
	cd "$BATS_TEST_TMPDIR" || return
	export QSM_VM_DIR=$PWD/a/vms QSM_RUN_DIR=$PWD/a/run QSM_NET_DIR=$PWD/a/net
	mkdir -p a/net b/net
	echo user >a/net/lan
	echo user >b/net/green
	: >vmlinuz
	: >initrd
}

need() {
	local p
	for p; do
		command -v "$p" >/dev/null || skip "needs $p"
	done
}

# The document of a VM with two disks and a card on "lan"; afterwards we are host b.
document() {
	need qemu-system-x86_64 nbdkit jq socat xxh128sum
	vhd-create -q --size=8M a/base.vhd
	vhd-snap -q --output=a/leaf.avhd a/base.vhd >/dev/null
	vhd-create -q --size=4M a/b.vhd
	"$top/tests/lab/guest" domain --network=lan guest "$PWD" "vda=$PWD/a/leaf.avhd" "vdb=$PWD/a/b.vhd" >d.xml
	hv-qemu --quiet define d.xml
	vm-export guest >doc.xml
	export QSM_VM_DIR=$PWD/b/vms QSM_RUN_DIR=$PWD/b/run QSM_NET_DIR=$PWD/b/net
	# As they arrive: one merged, one copied
	cp a/base.vhd b/vda.vhd
	cp a/b.vhd b/vdb.vhd
}

disks='--disk=vda=b/vda.vhd --disk=vdb=b/vdb.vhd'

import() {
	# shellcheck disable=SC2086
	vm-import --quiet $disks --network=lan=green "$@" <doc.xml
}

nothing_defined() {
	[ -z "$(hv-qemu list)" ] || fail "defined: $(hv-qemu list)"
	[ -z "$(find b/vms -mindepth 1 ! -name .lock 2>/dev/null)" ] || fail "left: $(find b/vms)"
}

@test "disks and networks are mapped, and the VM is defined as it was" {
	document
	import
	[ "$(hv-qemu list)" = guest ]
	j=$(hv-qemu status --json guest)
	[ "$(jq -r .disks[0].leaf <<<"$j")" = "$PWD/b/vda.vhd" ]
	[ "$(jq -r .disks[1].leaf <<<"$j")" = "$PWD/b/vdb.vhd" ]
	[ "$(jq -r .networks[0].network <<<"$j")" = green ]
	[ "$(jq -r .owner <<<"$j")" = owner ]
	grep -q "$(jq -r .uuid <<<"$j")" doc.xml
}

@test "--pending defines it unstartable" {
	document
	import --pending=T1
	[ "$(hv-qemu status --json guest | jq -r '.owner + .token')" = pendingT1 ]
}

@test "flags travel" {
	document
	sed -i 's,<autostart>false,<autostart>true,' doc.xml
	import
	[ "$(hv-qemu status --json guest | jq -c '[.autostart, .ha]')" = '[true,false]' ]
}

@test "everything that is missing is named in one go" {
	document
	run vm-import --disk=vdb=none.vhd --disk=vdz=b/vda.vhd --network=nowhere=x <doc.xml
	assert_status 78
	for w in 'disk vda' '--disk=vda=FILE' none.vhd '--disk=vdz' 'network lan' '--network=nowhere=x'; do
		assert_output_has "$w"
	done
	nothing_defined
}

@test "--json lists the same" {
	document
	run --separate-stderr vm-import --json --check <doc.xml
	assert_status 78
	[ "$(jq -c '[.version, .ok, .defined, (.blockers | length)]' <<<"$output")" = '[1,false,false,3]' ]
}

@test "a disk of another size is refused" {
	document
	rm b/vdb.vhd
	vhd-create -q --size=5M b/vdb.vhd
	run import
	assert_status 78
	assert_output_has "the VM's disk has 4194304"
	nothing_defined
}

@test "another disk of the same size is refused" {
	document
	rm b/vda.vhd
	vhd-create -q --size=8M b/vda.vhd
	run import
	assert_status 78
	assert_output_has "another disk"
	nothing_defined
}

@test "an increment on its base is accepted, and one without its base is not" {
	document
	vhd-snap -q --output=b/vda.avhd b/vda.vhd >/dev/null
	disks='--disk=vda=b/vda.avhd --disk=vdb=b/vdb.vhd'
	import --check
	mv b/vda.vhd b/away.vhd
	run import --check
	assert_status 78
	assert_output_has vda
}

@test "--check defines nothing" {
	document
	import --check
	nothing_defined
}

@test "a network card is mapped by its address before its network" {
	document
	echo user >b/net/blue
	mac=$(sed -n "s/.*mac address=\"\([^\"]*\)\".*/\1/p" doc.xml | head -n 1)
	import --network="${mac^^}=blue"
	[ "$(hv-qemu status --json guest | jq -r .networks[0].network)" = blue ]
}

@test "a name in use is named before anything is made" {
	document
	import
	run import
	assert_status 78
	assert_output_has 'is here already'
}

@test "a copy has another name and UUID" {
	document
	import
	import --name='die Kopie' --new-uuid
	[ "$(hv-qemu list | wc -l)" = 2 ]
	[ "$(hv-qemu status --json guest | jq -r .uuid)" != "$(hv-qemu status --json 'die Kopie' | jq -r .uuid)" ]
}

@test "--print maps without looking at this host" {
	document
	vm-import --print --disk=vda=/none --network=lan=zz --name=x <doc.xml >out.xml
	grep -q 'file="/none"' out.xml
	grep -q 'network="zz"' out.xml
	grep -q '<name>x</name>' out.xml
	! grep -q qsm-vm out.xml
	nothing_defined
}

@test "--print=json is the digest that adapters use" {
	document
	run --separate-stderr vm-import --print=json <doc.xml
	assert_status 0
	[ "$(jq -c '[.name, .memory, .vcpus, .machine, .cpu, (.disks | length), .nics[0].network]' <<<"$output")" = \
		'["guest",100663296,1,"pc-q35-7.2","qemu64",2,"lan"]' ]
}

@test "a plain libvirt domain is accepted" {
	document
	# shellcheck disable=SC2086
	vm-import --quiet $disks --network=lan=green <d.xml
	[ "$(hv-qemu list)" = guest ]
}

@test "a path in the document never names a file here" {
	document
	# The very same files, at the very same place.
	run vm-import --check --network=lan=green <doc.xml
	assert_status 78
	assert_output_has 'no --disk=vda=FILE'
}

@test "a kernel that not everybody may read must be named by the user" {
	document
	echo secret >shadow
	chmod 600 shadow
	sed -i "s,<initrd>.*</initrd>,<initrd>$PWD/shadow</initrd>," doc.xml
	run import --check
	assert_status 78
	assert_output_has shadow
	import --check --initrd=shadow
}

@test "a network name cannot leave the folder of networks" {
	document
	echo user >b/evil
	run vm-import --check $disks --network=lan=../evil <doc.xml
	assert_status 78
}

@test "a document type is refused, with or without entities" {
	printf '<!DOCTYPE domain [<!ENTITY x SYSTEM "file:///etc/passwd">]><domain><name>&x;</name></domain>' >evil
	run vm-import --print <evil
	assert_status 65
	assert_output_has DTD
	{
		printf '<!DOCTYPE d [<!ENTITY a "aaaaaaaaaa">'
		p=a
		for c in b c d e f g h i j; do
			printf '<!ENTITY %s "&%s;&%s;&%s;&%s;&%s;&%s;&%s;&%s;&%s;&%s;">' $c $p $p $p $p $p $p $p $p $p $p
			p=$c
		done
		printf ']><domain><name>&j;</name></domain>'
	} >evil
	run timeout "$patience" vm-import --print <evil
	assert_status 65
}

@test "what is too long, too deep or no XML is refused" {
	head -c 5000000 /dev/zero | tr '\0' ' ' >long
	run vm-import --print <long
	assert_status 65
	head -c 100000 /dev/zero | sed 's/\x00/<a>/g' >deep
	run vm-import --print <deep
	assert_status 65
	for d in '' '<domain' '<html/>' '<domain/>x' '<qsm-vm xmlns="urn:qsm-tools:vm:1" version="2"><domain/></qsm-vm>' \
		'<qsm-vm xmlns="urn:qsm-tools:vm:1" version="1"/>'; do
		run vm-import --print <<<"$d"
		assert_status 65
	done
}

@test "values that make no sense are refused" {
	for d in '<name>a/b</name>' '<name>.x</name>' '<uuid>x</uuid>' '<memory>-1</memory>' '<memory unit="X">1</memory>' \
		'<memory unit="T">99999999999</memory>' '<vcpu>0</vcpu>' '<vcpu>x</vcpu>' \
		'<os><type machine="q35,dumpdtb=/x">hvm</type></os>' '<os><type arch="../x">hvm</type></os>' \
		'<cpu><model>max,x=y</model></cpu>' '<devices><interface><mac address="x"/></interface></devices>' \
		'<devices><interface><model type="x,y=z"/></interface></devices>' \
		'<devices><disk><target dev="a/b"/></disk></devices>' '<devices><disk/></devices>' \
		'<devices><disk><target dev="a"/></disk><disk><target dev="a"/></disk></devices>'; do
		case $d in
		*'<memory'*) rest='' ;;
		*) rest='<memory>65536</memory>' ;;
		esac
		run vm-import --print=json <<<"<domain>$rest$d</domain>"
		[ "$status" -eq 65 ] || fail "accepted: $d"
	done
}

@test "an adapter that fails leaves nothing defined, and its status is passed on" {
	document
	mkdir bin
	cat >bin/hv-full <<-'SH'
		#!/bin/sh
		cat >/dev/null
		[ "$1" = check-host ] || exit 73
	SH
	chmod +x bin/hv-full
	PATH=$PWD/bin:$PATH
	run import --hypervisor=full
	assert_status 73
	nothing_defined
}

@test "a file name with an equals sign, quotes and a newline is a file name" {
	document
	odd="$PWD/b/a=b \"'
ü.vhd"
	mv b/vda.vhd "$odd"
	vm-import --quiet --disk=vda="$odd" --disk=vdb=b/vdb.vhd --network=lan=green <doc.xml
	[ "$(hv-qemu status --json guest | jq -j .disks[0].leaf)" = "$odd" ]
}
