# SPDX-License-Identifier: BSD-2-Clause
# vhd-create: an empty disk, whole or not at all.
load helper
load disks

setup() {
	workdir
}

@test "a dynamic disk is sound, of the size asked for, and empty" {
	run --separate-stderr vhd-create --size=10M disk.vhd
	assert_status 0
	[ -z "$output$stderr" ]
	sound --strict disk.vhd
	[ "$(field disk.vhd foot.size foot.type head.block blocks | tr '\n' ' ')" = "10485760 3 2097152 0 " ]
	truncate -s 10M zero.raw
	is_raw disk.vhd zero.raw
}

@test "a fixed disk is the raw disk and a footer, and takes no space" {
	vhd-create --type=fixed --size=10M disk.vhd
	sound --strict disk.vhd
	[ "$(stat -c %s disk.vhd)" -eq $((10485760 + 512)) ]
	[ "$(stat -c %b disk.vhd)" -lt 64 ]
	truncate -s 10M zero.raw
	is_raw disk.vhd zero.raw
}

@test "--type=dynamic is the default and can be said" {
	vhd-create --type=dynamic --size=1M disk.vhd
	[ "$(field disk.vhd foot.type)" = 3 ]
}

@test "sizes have suffixes" {
	for s in 1048576 1024K 1M; do
		vhd-create --size=$s "$s.vhd"
		[ "$(field $s.vhd foot.size)" = 1048576 ] || fail "$s"
	done
	vhd-create --size=1G g.vhd
	[ "$(field g.vhd foot.size)" = 1073741824 ]
}

@test "the smallest disk is one sector" {
	vhd-create --size=512 disk.vhd
	sound --strict disk.vhd
	[ "$(field disk.vhd foot.size)" = 512 ]
}

@test "the largest disk is 2040 GiB" {
	vhd-create --size=2040G disk.vhd
	sound --strict disk.vhd
	[ "$(field disk.vhd foot.size)" = 2190433320960 ]
	[ "$(stat -c %s disk.vhd)" -lt 5000000 ]
}

@test "impossible sizes are refused, and nothing is made" {
	for s in 0 1000 -1 -512 '' x 1Q 1.5M 2190433321472 3T 99999999999999999999 18446744073709551616 0x; do
		refused 64 vhd-create --size="$s" disk.vhd
		[ ! -e disk.vhd ] || fail "made with --size=$s"
	done
	[ -z "$(ls -A)" ]
}

@test "the size must be given" {
	refused 64 vhd-create disk.vhd
	[ -z "$(ls -A)" ]
}

@test "one file must be given, not more" {
	refused 64 vhd-create --size=1M
	refused 64 vhd-create --size=1M a.vhd b.vhd
	[ -z "$(ls -A)" ]
}

@test "an unknown type is refused" {
	for t in vhdx differencing raw ''; do
		refused 64 vhd-create --type="$t" --size=1M disk.vhd
	done
	[ -z "$(ls -A)" ]
}

@test "block sizes from 4 KiB to 256 MiB" {
	for b in 4K 64K 512K 1M 2M 8M 256M; do
		vhd-create --block-size=$b --size=10M $b.vhd
		sound --strict $b.vhd
	done
	[ "$(field 512K.vhd head.block head.entries | tr '\n' ' ')" = "524288 20 " ]
	[ "$(field 256M.vhd head.entries)" = 1 ]
}

@test "other block sizes are refused" {
	for b in 0 512 2K 3M 5000 512M 4G 99999999999999999999 x; do
		refused 64 vhd-create --block-size=$b --size=10M disk.vhd
	done
	[ -z "$(ls -A)" ]
}

@test "the creator is Windows unless another code is given" {
	vhd-create --size=1M a.vhd
	vhd-create --creator=qem2 --size=1M b.vhd
	[ "$(model info a.vhd | jq -r .creator)" = "win " ]
	[ "$(model info b.vhd | jq -r .creator)" = qem2 ]
	sound --strict b.vhd
}

@test "a creator code that does not fit is refused" {
	for c in abcde '' $'a\tb' é; do
		refused 64 vhd-create --creator="$c" --size=1M disk.vhd
	done
	[ -z "$(ls -A)" ]
}

@test "a file that exists is not overwritten" {
	echo precious >disk.vhd
	unchanged disk.vhd -- vhd-create --size=1M disk.vhd
	assert_status 73
	[[ $stderr == *disk.vhd*exist* ]]
}

@test "--force and -f replace it" {
	for f in --force -f; do
		echo precious >disk.vhd
		vhd-create $f --size=1M disk.vhd
		sound --strict disk.vhd
	done
	[ "$(ls -A)" = disk.vhd ]
}

@test "a symbolic link that leads nowhere exists, too" {
	ln -s elsewhere disk.vhd
	refused 73 vhd-create --size=1M disk.vhd
	[ "$(readlink disk.vhd)" = elsewhere ]
	[ ! -e elsewhere ]
}

@test "a folder is never replaced" {
	mkdir disk.vhd
	refused 73 vhd-create --size=1M disk.vhd
	refused 73 vhd-create --force --size=1M disk.vhd
	[ -d disk.vhd ]
	[ "$(ls -A)" = disk.vhd ]
}

@test "a disk in use is not replaced, even by force" {
	vhd-create --size=1M disk.vhd
	hold disk.vhd write
	before=$(sha disk.vhd)
	refused 75 vhd-create --force --size=2M disk.vhd
	release
	[ "$(sha disk.vhd)" = "$before" ]
}

@test "a folder that is missing" {
	refused 73 vhd-create --size=1M nowhere/disk.vhd
}

@test "a file as a folder" {
	touch file
	run vhd-create --size=1M file/disk.vhd
	[ "$status" -ne 0 ]
	[ "$status" -lt 128 ]
}

@test "two disks are two identities" {
	vhd-create --size=1M a.vhd
	vhd-create --size=1M b.vhd
	[ "$(field a.vhd foot.uid)" != "$(field b.vhd foot.uid)" ]
}

@test "killed at any system call, it leaves no half disk under the name" {
	need strace
	for call in pwrite64 ftruncate fdatasync fsync rename renameat renameat2 linkat; do
		for n in 1 2 3 4 5; do
			rm -f disk.vhd
			run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=$call \
				-e inject=$call:signal=KILL:when=$n vhd-create --size=5M disk.vhd
			[ "$status" -ne 0 ] || break
			assert_status 137
			killed=yes
			[ ! -e disk.vhd ] || sound --strict disk.vhd
		done
	done
	[ -n "$killed" ]
	sound --strict disk.vhd
}

@test "no space: 73, and nothing is left behind" {
	run small_fs 64k 'vhd-create --size=2040G small/disk.vhd; s=$?; ls -A small >&2; exit $s'
	assert_status 73
	[ "${#lines[@]}" -eq 1 ] || fail "something is left, or no message"
}

@test "a failing fsync is an I/O error, and nothing is made" {
	need strace
	for call in fsync fdatasync; do
		run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=$call \
			-e inject=$call:error=EIO:when=1 vhd-create --size=5M disk.vhd
		if grep -q INJECTED trace; then
			injected=yes
			assert_status 74
		fi
		[ "$status" -eq 0 ] || [ ! -e disk.vhd ]
		rm -f disk.vhd
	done
	[ -n "$injected" ]
}

@test "-- ends the options" {
	vhd-create --size=1M -- -disk.vhd
	sound --strict ./-disk.vhd
}

# dies COMMAND…: killed when its work is done and has no name yet
dies() {
	need strace
	run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=fsync \
		-e inject=fsync:signal=KILL:when=1 "$@"
	assert_status 137
	rm trace
}

@test "what a run that was killed has left goes with the next one that makes the same file" {
	dies vhd-create --size=5M disk.vhd
	dies vhd-create --size=5M other.vhd
	cp .disk.vhd.*.tmp .disk.vhd.0123456789abcdef.tmp
	vhd-create --size=5M disk.vhd
	[ -z "$(ls -A | grep '^\.disk')" ] || fail "left:" "$(ls -A)"
	# nobody's but its own
	[ "$(ls -A | grep -c '^\.other\.vhd\..*\.tmp$')" -eq 1 ]
	dies vhd-create --size=5M --force disk.vhd
	refused 73 vhd-create --size=5M disk.vhd
	[ "$(ls -A | grep -c '^\.disk')" -eq 1 ]
	vhd-create --size=5M --force disk.vhd
	[ "$(ls -A | grep -c '^\.disk')" -eq 0 ]
}

@test "what a run that lives is making stays" {
	need strace
	env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=fsync -e inject=fsync:signal=STOP:when=1 \
		vhd-create --size=5M disk.vhd 3>&- &
	local first=$!
	wait_for grep -q 'stopped by SIGSTOP' trace
	ls .disk.vhd.*.tmp
	vhd-create --size=6M disk.vhd
	ls .disk.vhd.*.tmp
	kill -CONT "$(pgrep -P $first)"
	status=0
	wait $first || status=$?
	[ $status -eq 73 ]
	[ "$(ls -A)" = $'disk.vhd\ntrace' ]
}

@test "files of others that have such names stay" {
	local name=.disk.vhd.0123456789abcdef.tmp
	for name in .disk.vhd.0123456789abcde.tmp .disk.vhd.0123456789abcdef.tmp.tmp .disk.vhd.0123456789ABCDEF.tmp \
		.disk.vhd.partial.tmp .disk.vhd0123456789abcdef.tmp disk.vhd.0123456789abcdef.tmp; do
		echo mine >"$name"
	done
	ln -s gone .disk.vhd.0123456789abcdef.tmp
	mkdir .disk.vhd.1123456789abcdef.tmp
	mkfifo .disk.vhd.2123456789abcdef.tmp
	ln .disk.vhd.partial.tmp .disk.vhd.3123456789abcdef.tmp
	[ "$(id -u)" -ne 0 ] || { echo theirs >.disk.vhd.4123456789abcdef.tmp && chown 1:1 .disk.vhd.4123456789abcdef.tmp; }
	ls -A >before
	vhd-create --size=5M disk.vhd
	ls -A | grep -v '^disk.vhd$' | diff - before
}
