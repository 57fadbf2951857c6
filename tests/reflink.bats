# SPDX-License-Identifier: BSD-2-Clause
# Merging where files can share their blocks: whole blocks move without being copied.
load helper
load disks

setup() {
	needs_root
	workdir
	need filefrag
}

teardown() {
	! mountpoint -q "$BATS_TEST_TMPDIR/w/fs" || umount -l "$BATS_TEST_TMPDIR/w/fs"
}

# The file system TYPE on fs/, of a size that every mkfs accepts.
file_system() {
	need "mkfs.$1"
	truncate -s 400M fs.img
	"mkfs.$1" -q fs.img
	mkdir -p fs
	mount -o loop fs.img fs 2>mount.err || skip "cannot mount $1 here: $(cat mount.err)"
}

# shared FILE: how many bytes of it another file has too
shared() {
	filefrag -v -b1 "$1" | awk -F: '/shared/ { n += $4 } END { print n + 0 }'
}

# A child whose blocks are full, and a few scattered sectors, merged into its parent on TYPE.
merged_on() {
	file_system "$1"
	model make fs/base.vhd --size=64M --fill=200:4K --raw=leaf.raw
	model make fs/leaf.avhd --parent=fs/base.vhd --fill=12:2M --seq --align=2M --zeros=0 --raw=leaf.raw
	model write fs/leaf.avhd --fill=40:512 --raw=leaf.raw --seed=4
	sync -f fs
	vhd-merge -q fs/leaf.avhd
	is_raw fs/base.vhd leaf.raw
	sound fs/base.vhd
}

@test "XFS: whole blocks are shared, not copied" {
	merged_on xfs
	[ "$(shared fs/base.vhd)" -ge $((12 * 2000 * 1024)) ] || fail "$(filefrag -v -b1 fs/base.vhd)"
}

@test "btrfs: whole blocks are shared, not copied" {
	merged_on btrfs
	[ "$(shared fs/base.vhd)" -ge $((12 * 2000 * 1024)) ] || fail "$(filefrag -v -b1 fs/base.vhd)"
}

@test "ext4 cannot share; the result is the same" {
	merged_on ext4
	[ "$(shared fs/base.vhd)" -eq 0 ]
}

@test "XFS: a merge that has shared blocks does not change the child" {
	merged_on xfs
	before=$(sha fs/leaf.avhd)
	model write fs/base.vhd --fill=5:2M --seed=9
	[ "$(sha fs/leaf.avhd)" = "$before" ]
}
