# SPDX-License-Identifier: BSD-2-Clause
# vhd-sum: the same sum for the same content, whatever the files look like.
load helper
load disks

setup() {
	workdir
}

sum() {
	vhd-sum "$@" | cut -d' ' -f1
}

@test "one line as md5sum prints it" {
	model make disk.vhd --size=8M --fill=3:4K
	run --separate-stderr vhd-sum disk.vhd
	assert_status 0
	[ -z "$stderr" ]
	[[ $output =~ ^[0-9a-f]{32}\ \ disk\.vhd$ ]]
}

@test "the sum is the one that the page defines" {
	need xxhsum
	model make disk.vhd --size=5M --fill=30:512 --raw=disk.raw
	[ "$(sum disk.vhd)" = "$(model contentsum disk.raw)" ]
	model make odd.vhd --size=1049088 --fill=30:512 --raw=odd.raw
	[ "$(sum odd.vhd)" = "$(model contentsum odd.raw)" ]
}

@test "equal for raw, fixed, dynamic and a chain of equal content" {
	model make base.vhd --size=8M --fill=20:4K --raw=disk.raw
	model make leaf.avhd --parent=base.vhd --fill=40:512 --raw=disk.raw --seed=2 --block=64K
	for t in raw fixed dynamic; do
		vhd-convert --type=$t leaf.avhd $t
	done
	[ "$(vhd-sum leaf.avhd disk.raw raw fixed dynamic | cut -d' ' -f1 | sort -u | wc -l)" -eq 1 ]
	[ "$(sum base.vhd)" != "$(sum leaf.avhd)" ]
}

@test "equal for zeros that are stored and zeros that are not" {
	vhd-create --size=4M empty.vhd
	model make zeros.vhd --size=4M --fill=20:4K --zeros=1
	[ "$(field zeros.vhd blocks)" -gt 0 ]
	dd if=/dev/zero of=dense.raw bs=1M count=4 status=none
	truncate -s 4M hole.raw
	[ "$(vhd-sum empty.vhd zeros.vhd dense.raw hole.raw | cut -d' ' -f1 | sort -u | wc -l)" -eq 1 ]
}

@test "one bit makes another sum" {
	model make disk.vhd --size=8M --fill=9:4K --raw=a.raw
	cp a.raw b.raw
	printf '\1' | dd of=b.raw bs=1 seek=8388607 conv=notrunc status=none
	[ "$(sum a.raw)" != "$(sum b.raw)" ]
}

@test "zeros at the end make another sum" {
	truncate -s 1M a.raw
	truncate -s 1048064 b.raw
	truncate -s 2M c.raw
	[ "$(vhd-sum a.raw b.raw c.raw | cut -d' ' -f1 | sort -u | wc -l)" -eq 3 ]
}

@test "chunks that trade places make another sum" {
	model make disk.vhd --size=2M --fill=2:1M --zeros=0 --seq --raw=a.raw
	{ tail -c 1M a.raw; head -c 1M a.raw; } >b.raw
	[ "$(sum a.raw)" != "$(sum b.raw)" ]
}

@test "holes cost nothing: 2040 GiB in seconds" {
	vhd-create --size=2040G disk.vhd
	run timeout "$patience" vhd-sum disk.vhd
	assert_status 0
	assert_output_has disk.vhd
}

@test "several disks, the first failure is the status" {
	model make a.vhd --size=1M
	run --separate-stderr vhd-sum a.vhd gone.vhd a.vhd
	assert_status 66
	[ "${#lines[@]}" -eq 2 ]
	[[ $stderr == *gone.vhd* ]]
}

@test "nothing is written" {
	model make base.vhd --size=1M --fill=3:4K
	model make leaf.avhd --parent=base.vhd --fill=3:4K
	unchanged base.vhd leaf.avhd -- vhd-sum leaf.avhd
	assert_status 0
	[ -n "$output" ]
}

@test "--check: equal sums" {
	model make a.vhd --size=1M --fill=3:4K
	model make b.vhd --size=2M --fill=3:4K
	vhd-sum a.vhd b.vhd >sums
	run --separate-stderr vhd-sum --check sums
	assert_status 0
	[ "$output" = $'a.vhd: OK\nb.vhd: OK' ]
}

@test "--check: a sum that is not the same is 65, and the others are still checked" {
	model make a.vhd --size=1M --fill=3:4K
	model make b.vhd --size=2M --fill=3:4K
	vhd-sum a.vhd b.vhd >sums
	model write a.vhd --fill=1:512 --zeros=0
	run --separate-stderr vhd-sum --check sums
	assert_status 65
	[ "$output" = $'a.vhd: FAILED\nb.vhd: OK' ]
	run --separate-stderr vhd-sum --quiet --check sums
	assert_status 65
	[ "$output" = 'a.vhd: FAILED' ]
}

@test "--check: from standard input" {
	model make a.vhd --size=1M --fill=3:4K
	run bash -c 'vhd-sum a.vhd | vhd-sum --check -'
	assert_status 0
	[ "$output" = 'a.vhd: OK' ]
}

@test "--check: a disk that is gone is 66" {
	model make a.vhd --size=1M
	vhd-sum a.vhd >sums
	rm a.vhd
	run --separate-stderr vhd-sum --check sums
	assert_status 66
	[ -n "$stderr" ]
}

@test "--check: a file of sums that is missing, empty or rubbish" {
	refused 66 vhd-sum --check sums
	touch sums
	refused 65 vhd-sum --check sums
	echo 'what is this' >sums
	refused 65 vhd-sum --check sums
	printf 'd41d8cd98f00b204e9800998ecf8427  a.vhd\n' >sums
	refused 65 vhd-sum --check sums
	head -c 100000 /dev/urandom >sums
	refused 65 vhd-sum --check sums
}

@test "--check: one line that cannot be read makes the check fail" {
	model make a.vhd --size=1M
	vhd-sum a.vhd >sums
	echo rubbish >>sums
	run --separate-stderr vhd-sum --check sums
	assert_status 65
	[ "$output" = 'a.vhd: OK' ]
}

@test "names with newlines and backslashes survive the way there and back" {
	for n in $'new\nline.vhd' '\n.vhd' 'a b.vhd' '  x' "it's" 'schön.vhd' ' trailing '; do
		model make "$n" --size=1M
	done
	vhd-sum -- * >../sums
	[ "$(wc -l <../sums)" -eq 7 ]
	[ "$(grep -c '^\\' ../sums)" -eq 2 ]
	run vhd-sum --check ../sums
	assert_status 0
	[ "$(grep -c ': OK$' <<<"$output")" -eq 7 ]
	rm -f ../sums
}

@test "--json" {
	model make a.vhd --size=1M
	run --separate-stderr vhd-sum --json a.vhd
	assert_status 0
	json '.version == 1 and .sums[0].file == "a.vhd" and .sums[0].size == 1048576'
	[ "$(jq -r '.sums[0].sum' <<<"$output")" = "$(sum a.vhd)" ]
	vhd-sum a.vhd >sums
	model write a.vhd --fill=1:512 --zeros=0
	run --separate-stderr vhd-sum --json --check sums
	assert_status 65
	json '.sums[0].ok == false'
}

@test "--check and disks together are a mistake" {
	model make a.vhd --size=1M
	vhd-sum a.vhd >sums
	refused 64 vhd-sum --check sums a.vhd
	refused 64 vhd-sum
}

@test "a disk locked by a writer is 75" {
	model make disk.vhd --size=1M
	hold disk.vhd write
	refused 75 vhd-sum disk.vhd
	release
}

@test "where nobody can tell whether a disk is locked, it is not free" {
	need strace
	local first last
	model make disk.vhd --size=1M
	hold disk.vhd write
	strace -qq -e trace=fcntl -o trace vhd-sum disk.vhd || :
	first=$(grep -n GETLK trace | head -n 1 | cut -d: -f1)
	last=$((first + 2)) # for all that a reader asks
	run env ASAN_OPTIONS=detect_leaks=0 strace -qq -o trace -e trace=fcntl \
		-e inject=fcntl:error=EIO:when="$first..$last" vhd-sum disk.vhd
	release
	assert_status 74
	assert_output_has 'cannot tell whether it is locked'
}

@test "a parent locked by a writer is 75, too" {
	model make base.vhd --size=1M
	model make leaf.avhd --parent=base.vhd
	hold base.vhd write
	refused 75 vhd-sum leaf.avhd
	[[ $stderr == *base.vhd* ]]
	release
}

@test "a bad sector is reported, never summed" {
	need strace
	model make disk.vhd --size=4M --fill=3:4K
	for call in pread64 read preadv; do
		run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -P disk.vhd -e trace=$call \
			-e inject=$call:error=EIO:when=2+ vhd-sum disk.vhd
		if grep -q INJECTED trace; then
			injected=yes
			assert_status 74
		fi
	done
	[ -n "$injected" ]
}

@test "--progress=json reports on standard error" {
	model make disk.vhd --size=8M --fill=40:4K
	run --separate-stderr vhd-sum --progress=json disk.vhd
	assert_status 0
	[ "${#lines[@]}" -eq 1 ]
	[ -n "$stderr" ]
	jq -es 'length > 0' <<<"$stderr"
}

@test "a chain of 30 disks of 2040 GiB in flat memory, holes for nothing" {
	vhd-create --size=2040G c0.vhd
	for i in $(seq 30); do
		vhd-snap -q --output="c$i.vhd" "c$((i - 1)).vhd" >/dev/null
		model write "c$i.vhd" --fill=2:4K --zeros=0 --seed="$i"
	done
	MEMORY=100000 run --separate-stderr limited vhd-sum c30.vhd
	assert_status 0
	sum=${output%% *}
	# Flattened it is the same.
	vhd-convert -q --type=dynamic c30.vhd flat.vhd
	[ "$(vhd-sum flat.vhd | cut -d' ' -f1)" = "$sum" ]
}

@test "sums of blocks: of each MiB, seeded, and the whole in the end" {
	model make disk.vhd --size=9M --fill=30:64K --raw=raw
	run vhd-sum --blocks disk.vhd
	assert_status 0
	[ "${lines[0]}" = "vhd-sums 1 9437184 0 $(vhd-info --json disk.vhd | jq -r '.. | .uuid? // empty' | head -n 1)" ]
	[ "${lines[1]}" = "$(head -c 1M raw | xxh128sum | cut -d' ' -f1)" ]
	[ "$(tail -n 1 <<<"$output")" = "end $(vhd-sum disk.vhd | cut -d' ' -f1)" ]
	[ "$(sed '1d;$d' <<<"$output" | awk '{ n += NF > 1 ? $2 : 1 } END { print n }')" -eq 9 ]
	[ "$(vhd-sum --blocks --seed=5 disk.vhd | sed 1d)" != "$(sed 1d <<<"$output")" ]
	run --separate-stderr vhd-sum --blocks raw
	[[ ${lines[0]} == "vhd-sums 1 9437184 0 -" ]]
	refused 64 vhd-sum --blocks disk.vhd raw
	refused 64 vhd-sum --seed=1 disk.vhd
	refused 64 vhd-sum --blocks --seed=-1 disk.vhd
}
