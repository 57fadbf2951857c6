# SPDX-License-Identifier: BSD-2-Clause
# The checker itself: what proves that nothing is lost must see it when something is.
load helper

setup() {
	check=$top/tests/lab/guestcheck
	disk=$BATS_TEST_TMPDIR/disk.raw
	log=$BATS_TEST_TMPDIR/console.log
	id=6deeb383-6242-4091-a1ff-90c3334e5ba9
	"$check" fill --size=4M --fill=400K "$disk"
	{
		echo "BOOT $id"
		echo "ALIVE $id 1.000000"
		for n in 97 98 99; do
			echo "ACK $n 1.$n"'0000 700'
		done
	} >"$log"
}

# slot N: where record N lies in a disk of 1024 records, found by reading the disk.
slot() {
	python3 - "$disk" "$1" <<'PY'
import struct, sys
data = open(sys.argv[1], 'rb').read()
for slot in range(len(data) // 4096):
    rec = data[slot * 4096:slot * 4096 + 4096]
    if rec[:8] == b'QSMREC1\n' and struct.unpack('<Q', rec[8:16])[0] == int(sys.argv[2]):
        print(slot)
PY
}

check_disk() {
	run "$check" check --console "$log" "$@" "$disk"
}

@test "a sound disk has lost nothing" {
	check_disk
	assert_status 0
	assert_output_has "acknowledged=3"
	assert_output_has "lost=0"
	assert_output_has "reboots=0"
}

@test "an acknowledged record that is missing is lost" {
	echo "ACK 100 2.000000 700" >>"$log"
	check_disk
	assert_status 1
	assert_output_has "lost=1"
}

@test "a record with one flipped byte is lost" {
	printf x | dd of="$disk" bs=1 seek=$(($(slot 40) * 4096 + 2000)) conv=notrunc status=none
	check_disk
	assert_status 1
	assert_output_has "lost: record 40"
}

@test "a record that came back older is lost" {
	# 1024 slots, all written: record 1024 belongs where 0 is.
	"$check" fill --size=4M --fill=4M "$disk"
	sed -i '/^ACK/d' "$log"
	echo "ACK 1024 2.000000 700" >>"$log"
	check_disk
	assert_status 1
	assert_output_has "lost: record 1024, slot $(slot 0): 0"
	assert_output_has "lost=1"
}

@test "a record in the wrong place is foreign" {
	dd if="$disk" of="$disk" bs=4096 skip="$(slot 7)" seek="$(slot 8)" count=1 conv=notrunc status=none
	check_disk
	assert_status 1
	assert_output_has "foreign=1"
}

@test "another boot is a reboot" {
	sed 's/6deeb383/7deeb383/' "$log" | grep -v ACK >"$log.2"
	run "$check" check --console "$log" --console "$log.2" "$disk"
	assert_status 1
	assert_output_has "reboots=1"
	run "$check" check --boots=2 --console "$log" --console "$log.2" "$disk"
	assert_status 0
}

@test "an uptime that goes back is told" {
	echo "ALIVE $id 0.500000" >>"$log"
	check_disk
	assert_status 1
	assert_output_has "uptime_backwards=1"
}

@test "a line that began on one host and ended on the other counts" {
	printf 'ACK 100 2.00' >>"$log"
	printf '0000 700\n' >"$log.2"
	run "$check" check --console "$log" --console "$log.2" "$disk"
	assert_status 1
	assert_output_has "last=100"
}

@test "an error that the guest was given is told" {
	echo "FAIL write: Input/output error" >>"$log"
	check_disk
	assert_status 1
	assert_output_has "guest_errors=1"
}

@test "nothing acknowledged is no success" {
	echo "BOOT $id" >"$log"
	check_disk
	assert_status 1
}

@test "the gap is the longest time between two acknowledgements" {
	printf '1.0 0 1\n1.5 0 2\n3.25 1 3\n3.5 1 4\n' >"$BATS_TEST_TMPDIR/acks"
	run "$check" gap "$BATS_TEST_TMPDIR/acks"
	assert_status 0
	assert_output_has "longest_gap=1.750"
	assert_output_has "offline_seconds=1.75"
}
