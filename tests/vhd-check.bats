# SPDX-License-Identifier: BSD-2-Clause
# vhd-check: every fault has a name, is found, and is mended where that needs no guess.
load helper
load disks

setup() {
	workdir
}

@test "a sound disk" {
	model make disk.vhd --size=8M --fill=9:4K
	run --separate-stderr vhd-check disk.vhd
	assert_status 0
	assert_output_has "disk.vhd: sound"
	[ -z "$stderr" ]
}
