# SPDX-License-Identifier: BSD-2-Clause
# The document of a VM: what stands in it, and what must not.
load helper

setup() {
	cd "$BATS_TEST_TMPDIR" || return
	export QSM_VM_DIR=$PWD/vms QSM_RUN_DIR=$PWD/run QSM_NET_DIR=$PWD/net
	mkdir net
	echo user >net/lan
}

vm() { # NAME [DEFINE-OPTION…]
	local name=$1
	shift
	vhd-create -q --size=8M base.vhd
	vhd-snap -q --output=leaf.avhd base.vhd >/dev/null
	vhd-create -q --size=4M --type=fixed b.vhd
	"$top/tests/lab/guest" domain --network=lan "$name" /boot "vda=$PWD/leaf.avhd" "vdb=$PWD/b.vhd" >d.xml
	hv-qemu --quiet define "$@" d.xml
}

# x XPATH: of the document, whose elements have a namespace
x() {
	xmllint --xpath "$1" doc.xml
}

need() {
	command -v "$1" >/dev/null || skip "needs $1"
}

uuid_of() {
	vhd-info --json "$1" | jq -r '.files[0].uuid'
}

@test "the document holds disks with their chains, networks, flags, state and the domain" {
	need xmllint
	vm guest --ha
	vm-export guest >doc.xml
	[ "$(x 'string(/*/@version)')" = 1 ]
	[ "$(x 'namespace-uri(/*)')" = urn:qsm-tools:vm:1 ]
	[ "$(x 'string(//*[local-name()="state"])')" = off ]
	[ "$(x 'string(//*[local-name()="autostart"])')" = false ]
	[ "$(x 'string(//*[local-name()="ha"])')" = true ]
	d='//*[local-name()="disks"]/*[@target="vda"]'
	[ "$(x "string($d/@leaf)")" = "$PWD/leaf.avhd" ]
	[ "$(x "string($d/@size)")" = 8388608 ]
	[ "$(x "string($d/@uuid)")" = "$(uuid_of leaf.avhd)" ]
	[ "$(x "string($d/*[1]/@type)")" = differencing ]
	[ "$(x "string($d/*[2]/@file)")" = "$PWD/base.vhd" ]
	[ "$(x "string($d/*[2]/@uuid)")" = "$(uuid_of base.vhd)" ]
	[ "$(x 'count(//*[local-name()="disks"]/*[@target="vdb"]/*)')" = 1 ]
	[ "$(x 'string(//*[local-name()="networks"]/*/@name)')" = lan ]
	# libvirt's elements stay in no namespace
	[ "$(x 'string(//domain/name)')" = guest ]
	[ "$(x 'string(//domain/devices/disk[1]/source/@file)')" = "$PWD/leaf.avhd" ]
}

@test "secrets stay at home, unless they are asked for" {
	vm guest
	sed -i 's,</devices>,<graphics type="vnc" passwd="geheim1"/></devices>,
		s,</devices>,<disk device="cdrom"><auth username="u"><secret usage="geheim2"/></auth></disk></devices>,' \
		vms/guest/domain.xml
	vm-export guest >doc.xml
	! grep -q geheim doc.xml || fail "$(grep geheim doc.xml)"
	grep -q 'type="vnc"' doc.xml
	vm-export --secrets guest >doc.xml
	grep -q geheim1 doc.xml
	grep -q geheim2 doc.xml
}

@test "a disk that is in use can be described" {
	vm guest
	python3 - leaf.avhd 3>&- <<-'PY' &
		import fcntl, struct, sys, time
		f = open(sys.argv[1], 'r+b')
		# QEMU's protocol: bytes 100+ and 200+, by open file description
		fcntl.fcntl(f, 37, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 100, 200, 0))
		open('locked', 'w').close()
		time.sleep(600)
	PY
	wait_for test -e locked
	run vhd-info leaf.avhd
	locked_out=$status
	vm-export guest >doc.xml || fail "it was not described"
	kill $!
	[ "$locked_out" -eq 75 ] || fail "the lock did not work: $locked_out"
	grep -q 'target="vda"' doc.xml
}

@test "odd names survive" {
	need xmllint
	name="a \"b' & <ü>"
	vm "$name"
	vm-export -- "$name" >doc.xml
	[ "$(x 'string(//domain/name)')" = "$name" ]
}

@test "nothing is changed" {
	vm guest
	before=$(find vms ./*.vhd ./*.avhd -printf '%p %T@ %s\n' | sort)
	vm-export guest >doc.xml
	[ "$before" = "$(find vms ./*.vhd ./*.avhd -printf '%p %T@ %s\n' | sort)" ]
}

@test "a VM that is not there is 66, and stdout stays empty" {
	run --separate-stderr vm-export nobody
	assert_status 66
	[ -z "$output" ]
}

@test "a missing parent is 66, a wrong one 65, and stdout stays empty" {
	vm guest
	mv base.vhd away.vhd
	run --separate-stderr vm-export guest
	assert_status 66
	[ -z "$output" ]
	vhd-create -q --size=8M base.vhd
	run --separate-stderr vm-export guest
	assert_status 65
	[ -z "$output" ]
}

@test "an adapter that is not there is 69, a name that is none 64" {
	run vm-export --hypervisor=none guest
	assert_status 69
	run vm-export --hypervisor=../../x guest
	assert_status 64
}

@test "an adapter's failure is passed on, and its nonsense is 76" {
	mkdir bin
	printf '#!/bin/sh\nexit 75\n' >bin/hv-busy
	printf '#!/bin/sh\necho "[1]"\n' >bin/hv-odd
	chmod +x bin/*
	PATH=$PWD/bin:$PATH
	run vm-export --hypervisor=busy guest
	assert_status 75
	run vm-export --hypervisor=odd guest
	assert_status 76
}

@test "output that cannot be written is an error" {
	vm guest
	run sh -c 'vm-export guest >/dev/full'
	assert_status 74
}

@test "a VM that was put aside is exported as saved, with size and sum of its state" {
	vhd-create -q --size=8M a.vhd
	echo "<domain><name>vm</name><memory>65536</memory><devices><disk><source file='$PWD/a.vhd'/><target dev='vda'/></disk></devices></domain>" |
		hv-qemu --quiet define -
	echo not loaded here | hv-qemu --quiet restore --later vm - >receipt
	vm-export vm >doc.xml
	grep -q '<state>saved</state>' doc.xml
	grep -q "<saved mode=\"running\" bytes=\"16\" xxh128=\"$(jq -r .xxh128 receipt)\"/>" doc.xml
	hv-qemu --quiet discard vm
	hv-qemu --quiet undefine vm
	[ "$(vm-import --disk=vda=a.vhd --check --json <doc.xml | jq -r .state)" = saved ]
	run vm-import --disk=vda=a.vhd <doc.xml
	assert_status 0
	assert_output_has 'restore --later'
	[ "$(hv-qemu status vm)" = off ]
}
