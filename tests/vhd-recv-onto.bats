# SPDX-License-Identifier: BSD-2-Clause
# vhd-recv --onto: an increment, or a difference, becomes part of the disk that it is from.
load helper
load disks
load streams

setup() {
	workdir
	mkdir src dst
	cd src || return
	model make base.vhd --size=16M --fill=60:4K --raw=base.raw
	cp base.raw all.raw
	model make child.avhd --parent=base.vhd --fill=900:4K --zeros=4 --seed=7 --raw=all.raw
	cd .. || return
	cp src/base.vhd dst/disk.vhd
	base=$(sha dst/disk.vhd)
}

send() {
	vhd-send --checkpoint=1M --resume="$(vhd-recv --token dst/disk.vhd)" --from=src/base.vhd src/child.avhd
}

updated() {
	is_raw dst/disk.vhd src/all.raw
	sound dst/disk.vhd
	[ "$(field dst/disk.vhd foot.uid)" = "$(field src/base.vhd foot.uid)" ]
	# A merge that was killed may leave the temporary file of its marker.
	rm -f dst/.disk.vhd.merging.*.tmp
	[ "$(ls -A dst)" = disk.vhd ] || fail "left behind" "$(ls -A dst)"
}

@test "an increment is applied" {
	send | vhd-recv --verify --onto dst/disk.vhd >r
	updated
	run cat r
	[ "$(json .file)" = dst/disk.vhd ]
	[ "$(json .uuid)" = "$(vhd-info --json dst/disk.vhd | jq -r '.. | .uuid? // empty' | head -n 1)" ]
}

@test "a difference is applied" {
	cp src/base.vhd src/new.vhd
	model write src/new.vhd --fill=30:4K --seed=9 --zeros=0
	vhd-sum --blocks --seed=3 dst/disk.vhd >sums
	vhd-send --against=sums src/new.vhd | vhd-recv --verify --onto dst/disk.vhd
	model cmp dst/disk.vhd src/new.vhd
	[ "$(ls -A dst)" = disk.vhd ]
}

# The sums, with OPTIONs, are of what the copy was once; S is the difference from that.
changed_copy() { # [OPTION]…
	cp src/base.raw dst/disk.raw
	cp src/base.raw new.raw
	vhd-sum -q --blocks "$@" dst/disk.raw >sums
	printf x | dd of=new.raw bs=1 seek=5M conv=notrunc status=none
	vhd-send --raw --against=- new.raw <sums >s
	printf x | dd of=dst/disk.raw bs=1 seek=15M conv=notrunc status=none
	base=$(sha dst/disk.raw)
}

not_taken() { # [OPTION]…
	run --separate-stderr vhd-recv "$@" --onto dst/disk.raw <s
	assert_status 65
	[[ $stderr == *'the base has changed'* ]]
	[ "$(sha dst/disk.raw)" = "$base" ]
	[ -z "$(find dst -name '.*.tmp')" ]
}

@test "a difference from what the copy was once: --verify does not take it, and says so" {
	changed_copy
	not_taken --base-changed --verify
}

@test "a difference from what the copy was once is not taken, whatever its sums are" {
	local seed
	for seed in 0 7; do
		changed_copy --seed=$seed
		not_taken
	done
	vhd-recv --base-changed --onto dst/disk.raw <s
	cmp -n 15M new.raw dst/disk.raw
}

@test "what is known of a stale copy is not read" {
	model make dst/big.vhd --size=100M --fill=80:64K --seed=3
	cp dst/big.vhd new.vhd
	model write new.vhd --fill=2:64K --seed=9 --zeros=0
	vhd-sum --blocks dst/big.vhd | vhd-send --against=- new.vhd >s
	ASAN_OPTIONS=detect_leaks=0 strace -f -e trace=pread64 -o trace vhd-recv --onto dst/big.vhd <s
	[ "$(awk -F' = ' '/pread64/ { n += $2 } END { print n }' trace)" -lt 20000000 ]
	[ "$(vhd-sum dst/big.vhd | cut -d" " -f1)" = "$(vhd-sum new.vhd | cut -d" " -f1)" ]
}

@test "a raw disk, also" {
	cp src/base.raw dst/disk.raw
	head -c 16M /dev/urandom >new.raw
	vhd-sum -q --blocks dst/disk.raw >sums 2>/dev/null
	vhd-send --raw --against=sums new.raw | vhd-recv --onto dst/disk.raw
	cmp new.raw dst/disk.raw
}

@test "interrupted: the disk is as it was, and both ways are open" {
	send | head -c 2000000 | vhd-recv --onto dst/disk.vhd || [ $? -eq 75 ]
	[ "$(sha dst/disk.vhd)" = "$base" ]
	vhd-recv --abort dst/disk.vhd
	[ "$(ls -A dst)" = disk.vhd ]
	send | head -c 2000000 | vhd-recv --onto dst/disk.vhd || [ $? -eq 75 ]
	[ "$(send | tee rest | wc -c)" -lt 3000000 ]
	vhd-recv --onto dst/disk.vhd <rest
	updated
}

@test "a base that was written to in between is left alone" {
	send | head -c 2000000 | vhd-recv --onto dst/disk.vhd || [ $? -eq 75 ]
	model write dst/disk.vhd --fill=1:512 --seed=77 --zeros=0
	base=$(sha dst/disk.vhd)
	send >rest
	run --separate-stderr vhd-recv --onto dst/disk.vhd <rest
	assert_status 65
	[[ $stderr == *"written to"* ]]
	[ "$(sha dst/disk.vhd)" = "$base" ]
}

# closed: no tool opens dst/disk.vhd, and each says how that ends
closed() {
	local t
	for t in "vhd-info dst/disk.vhd" "vhd-send dst/disk.vhd" "vhd-snap --output=dst/new.avhd dst/disk.vhd" \
		"vhd-resize --size=20M dst/disk.vhd" "vhd-convert --type=raw dst/disk.vhd dst/new.raw" \
		"vhd-sum dst/disk.vhd" "vhd-check --repair dst/disk.vhd"; do
		# shellcheck disable=SC2086
		run --separate-stderr env $t 3>&-
		assert_status 75
		[[ $stderr == *"vhd-recv --abort dst/disk.vhd"* ]] || fail "$t: $stderr"
	done
	[ ! -e dst/new.avhd ] && [ ! -e dst/new.raw ]
	vhd-info --unlocked dst/disk.vhd | grep -q "being received onto"
	vhd-check --unlocked dst/disk.vhd | grep -q receive-unfinished
	[ "$(vhd-recv --status --json dst/disk.vhd | jq .closed)" = true ]
}

@test "nobody opens the disk from before the first byte" {
	mkfifo pipe
	# BEGIN, and the first bytes of data
	{ send 2>/dev/null | head -c 500; exec sleep 600; } >pipe 3>&- &
	local sender=$!
	vhd-recv --onto dst/disk.vhd <pipe 3>&- &
	local receiver=$!
	wait_for test -e dst/disk.vhd.merging
	vhd-info --unlocked dst/disk.vhd | grep -q "being received onto"
	run --separate-stderr vhd-info dst/disk.vhd
	assert_status 75
	# QEMU, too, would have to write
	if command -v qemu-io >/dev/null; then
		run qemu-io -f vpc -c 'write 0 512' dst/disk.vhd
		[[ $output == *lock* ]] || fail "$output"
	fi
	kill -KILL $receiver
	wait $receiver || :
	kill $sender
	closed
	[ "$(sha dst/disk.vhd)" = "$base" ]
	send | vhd-recv --onto dst/disk.vhd
	updated
}

@test "interrupted: nobody opens the disk until it is finished, or given up" {
	send | head -c 2000000 | vhd-recv --onto dst/disk.vhd || [ $? -eq 75 ]
	closed
	vhd-recv --abort dst/disk.vhd
	[ "$(ls -A dst)" = disk.vhd ]
	[ "$(sha dst/disk.vhd)" = "$base" ]
	vhd-info dst/disk.vhd
	[ "$(vhd-recv --status --json dst/disk.vhd | jq .closed)" = false ]
}

@test "a log that was lost: the disk can be opened again, or the stream begins anew" {
	send | head -c 2000000 | vhd-recv --onto dst/disk.vhd || [ $? -eq 75 ]
	rm dst/.disk.vhd.partial-log.tmp
	closed
	[ -z "$(vhd-recv --token dst/disk.vhd)" ]
	cp -a dst again
	vhd-recv --abort dst/disk.vhd
	[ "$(ls -A dst)" = disk.vhd ]
	rm -r dst
	mv again dst
	send | vhd-recv --onto dst/disk.vhd
	updated
}

@test "a stream that fails before it is worth keeping leaves the disk open" {
	send | head -c 5000 | vhd-recv --onto dst/disk.vhd || [ $? -eq 76 ]
	[ "$(ls -A dst)" = disk.vhd ]
	vhd-info dst/disk.vhd
}

@test "another child is learned before the first byte" {
	vhd-snap --output=dst/other.avhd dst/disk.vhd
	local before
	before=$(ls -A dst)
	# Nothing but BEGIN is there to be read.
	mkfifo pipe
	{ send 2>/dev/null | head -c 400; exec sleep 600; } >pipe 3>&- &
	local sender=$!
	run --separate-stderr timeout "$patience" vhd-recv --onto dst/disk.vhd <pipe
	kill $sender
	assert_status 78
	[[ $stderr == *other.avhd* ]] || fail "$stderr"
	[ "$(ls -A dst)" = "$before" ]
	vhd-info dst/disk.vhd
	# Not the ones of other disks
	rm dst/other.avhd
	cp src/base.vhd dst/third.vhd
	model make dst/stranger.vhd --size=4M
	vhd-snap --output=dst/other.avhd dst/stranger.vhd
	rm dst/third.vhd
	send | vhd-recv --onto dst/disk.vhd
	is_raw dst/disk.vhd src/all.raw
}

@test "a merge that has ended is not done again" {
	need strace
	send >s
	cp src/base.vhd dst/disk.vhd
	local total
	total=$(strace -qq -e trace=pwrite64 vhd-recv --onto dst/disk.vhd <s 2>&1 | grep -c 'pwrite64(')
	cp src/base.vhd dst/disk.vhd
	# The last write says that the merge has ended.
	run env ASAN_OPTIONS=detect_leaks=0 strace -qq -o trace -e trace=pwrite64 \
		-e inject=pwrite64:signal=KILL:when="$total" vhd-recv --onto dst/disk.vhd <s
	assert_status 137
	[ -e dst/.disk.vhd.partial-log.tmp ]
	# It is open again, and somebody writes.
	model write dst/disk.vhd --fill=30:4K --seed=5 --zeros=0
	vhd-sum dst/disk.vhd >sum
	# Nothing is there any more that could be read back, and nobody says that it was.
	run --separate-stderr bash -c "$(declare -f send); send | vhd-recv --verify --onto dst/disk.vhd"
	assert_status 0
	[ "$(json '.verified')" = null ]
	vhd-sum --check sum
	[ "$(ls -A dst)" = disk.vhd ]
}

# The merge is killed when it has written nearly everything.
half_merged() {
	need strace
	send >s
	local total
	total=$(strace -qq -e trace=pwrite64 vhd-recv --onto dst/disk.vhd <s 2>&1 | grep -c 'pwrite64(')
	cp src/base.vhd dst/disk.vhd
	run env ASAN_OPTIONS=detect_leaks=0 strace -qq -o trace -e trace=pwrite64 \
		-e inject=pwrite64:signal=KILL:when=$((total - 20)) vhd-recv --onto dst/disk.vhd <s
	assert_status 137
}

@test "half merged: nothing that is said offers a way back, there is none" {
	half_merged
	run vhd-recv --status dst/disk.vhd
	assert_output_has 'until the same command has finished'
	[[ $output != *--abort* ]]
	send >rest
	run --separate-stderr env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=pwrite64 \
		-e inject=pwrite64:error=EIO:when=1+ vhd-recv --onto dst/disk.vhd <rest
	assert_status 74
	[[ $stderr == *'half merged'*'goes on'* ]]
	[[ $stderr != *--abort* ]]
	vhd-recv --onto dst/disk.vhd <rest
	updated
}

@test "finished by vhd-merge" {
	half_merged
	run --separate-stderr vhd-recv --abort dst/disk.vhd
	assert_status 65
	[[ $stderr == *"vhd-merge --delete dst/.disk.vhd.onto.tmp"* ]]
	vhd-merge --delete dst/.disk.vhd.onto.tmp
	is_raw dst/disk.vhd src/all.raw
	send | vhd-recv --onto dst/disk.vhd >r
	[ -s r ]
	updated
}

@test "finished by vhd-merge that leaves the child there" {
	half_merged
	vhd-merge dst/.disk.vhd.onto.tmp
	send | vhd-recv --onto dst/disk.vhd >r
	[ -s r ]
	rm -f dst/disk.vhd.absorbed
	updated
}

# A copy of the base takes the place of the disk.
put_back() {
	cp src/base.vhd dst/copy
	mv dst/copy dst/disk.vhd
}

not_there_any_more() {
	send >rest
	refused 65 vhd-recv --onto dst/disk.vhd <rest
	[[ $stderr == *'was put back'* ]]
	[ "$(sha dst/disk.vhd)" = "$base" ]
	vhd-recv --abort dst/disk.vhd
	send | vhd-recv --onto dst/disk.vhd
	updated
}

@test "half merged, and put back from a backup without its marker: nobody says that all is in it" {
	half_merged
	put_back
	rm dst/disk.vhd.merging
	not_there_any_more
	# also in the same file
	rm dst/disk.vhd
	cp src/base.vhd dst/disk.vhd
	half_merged
	cp src/base.vhd dst/disk.vhd
	rm dst/disk.vhd.merging
	not_there_any_more
}

# merged_and_killed: the receipt was not given
merged_and_killed() {
	need strace
	send >s
	run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -e trace=unlink \
		-e inject=unlink:signal=KILL:when="$(strace -f -qq -e trace=unlink vhd-recv --onto dst/disk.vhd <s 2>&1 |
			grep -c 'unlink(')" sh -c 'cp src/base.vhd dst/disk.vhd; exec vhd-recv --onto dst/disk.vhd <s'
	assert_status 137
	[ -n "$(vhd-recv --token dst/disk.vhd)" ]
	[ ! -e dst/disk.vhd.merging ]
}

@test "merged, and put back from a backup before that was told" {
	merged_and_killed
	put_back
	not_there_any_more
}

@test "merged, and in use before that was told" {
	merged_and_killed
	send >rest
	hold dst/disk.vhd write
	vhd-recv --onto dst/disk.vhd <rest >r
	[ -s r ]
	release
	updated
}

@test "once it is being merged, what cannot be read back stays" {
	half_merged
	send >rest
	run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -P dst/.disk.vhd.onto.tmp -e trace=pread64 \
		-e inject=pread64:error=EIO:when=20+ vhd-recv --verify --onto dst/disk.vhd <rest
	assert_status 74
	send | vhd-recv --verify --onto dst/disk.vhd
	updated
}

@test "once it is being merged, the child stays though the log is lost" {
	half_merged
	rm dst/.disk.vhd.partial-log.tmp
	refused 75 vhd-recv --onto dst/disk.vhd <s
	[[ $stderr == *'half merged'* ]]
	[ ! -e dst/.disk.vhd.partial-log.tmp ]
	vhd-merge --delete dst/.disk.vhd.onto.tmp
	updated
}

@test "a child that cannot be looked at is not one that is gone" {
	local n
	for n in 1+ 2 3 4; do
		rm -rf dst/.disk* dst/disk*
		cp src/base.vhd dst/disk.vhd
		half_merged
		send >rest
		run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -P dst/.disk.vhd.onto.tmp \
			-e trace=%lstat,newfstatat,statx -e inject=%lstat,newfstatat,statx:error=EIO:when=$n \
			vhd-recv --onto dst/disk.vhd <rest
		[ "$n" != 1+ ] || assert_status 74
		[ "$status" -eq 0 ] || vhd-recv --onto dst/disk.vhd <rest
		updated
	done
}

@test "while the half merged disk is not there, its child stays" {
	half_merged
	send >rest
	# With its marker, and without.
	mv dst/disk.vhd away
	refused 66 vhd-recv --onto dst/disk.vhd <rest
	refused 65 vhd-recv --abort dst/disk.vhd
	mv dst/disk.vhd.merging away.merging
	refused 66 vhd-recv --onto dst/disk.vhd <rest
	[ -e dst/.disk.vhd.onto.tmp ]
	# The name is a link to storage that is not mounted.
	ln -s ../elsewhere/disk.vhd dst/disk.vhd
	refused 66 vhd-recv --onto dst/disk.vhd <rest
	refused 66 vhd-recv --abort dst/disk.vhd
	mkdir elsewhere
	mv away elsewhere/disk.vhd
	mv away.merging elsewhere/disk.vhd.merging
	vhd-recv --onto dst/disk.vhd <rest
	is_raw elsewhere/disk.vhd src/all.raw
	[ "$(ls -A dst elsewhere | tr '\n' ' ')" = "dst: disk.vhd  elsewhere: disk.vhd " ] || fail "$(ls -A dst elsewhere)"
}

@test "half merged, or while a child arrives, it is not replaced by another disk" {
	vhd-send src/base.vhd >whole
	half_merged
	cp -a dst before
	refused 73 vhd-recv --force dst/disk.vhd <whole
	[[ $stderr == *'half merged with '*/.disk.vhd.onto.tmp* ]]
	head -c 100000 whole >cut
	refused 73 vhd-recv --force dst/disk.vhd <cut
	refused 73 vhd-create --force --size=1M dst/disk.vhd
	diff -r before dst
	# A new one would open as little.
	mv dst/disk.vhd away
	refused 73 vhd-recv dst/disk.vhd <whole
	mv away dst/disk.vhd
	send | vhd-recv --onto dst/disk.vhd
	updated
	cp src/base.vhd dst/disk.vhd
	send | head -c 2000000 | vhd-recv --onto dst/disk.vhd || [ $? -eq 75 ]
	refused 75 vhd-recv --force dst/disk.vhd <whole
	[[ $stderr == *'--abort'* ]]
	send | vhd-recv --onto dst/disk.vhd
	updated
}

@test "a log that cannot be read is not one that says nothing" {
	need strace
	send | head -c 2000000 | vhd-recv --onto dst/disk.vhd || [ $? -eq 75 ]
	send >rest
	cp dst/.disk.vhd.partial.tmp kept
	run env ASAN_OPTIONS=detect_leaks=0 strace -f -qq -o trace -P dst/.disk.vhd.partial-log.tmp -e trace=pread64 \
		-e inject=pread64:error=EIO:when=3+ vhd-recv --onto dst/disk.vhd <rest
	assert_status 74
	assert_output_has partial-log
	cmp kept dst/.disk.vhd.partial.tmp
	refused 75 vhd-info dst/disk.vhd
	vhd-recv --onto dst/disk.vhd <rest
	updated
}

@test "through a symbolic link" {
	mkdir elsewhere
	mv dst/disk.vhd elsewhere
	ln -s ../elsewhere/disk.vhd dst/disk.vhd
	send | head -c 2000000 | vhd-recv --onto dst/disk.vhd || [ $? -eq 75 ]
	refused 75 vhd-info elsewhere/disk.vhd
	send | vhd-recv --verify --onto dst/disk.vhd
	is_raw elsewhere/disk.vhd src/all.raw
	[ "$(ls -A dst elsewhere | tr '\n' ' ')" = "dst: disk.vhd  elsewhere: disk.vhd " ] || fail "$(ls -A dst elsewhere)"
	[ -L dst/disk.vhd ]
}

@test "a disk that cannot be written to is learned before the first byte" {
	needs_root
	send >s
	chmod 444 dst/disk.vhd
	chmod 777 dst "$BATS_TEST_TMPDIR" .
	local d
	for d in "$BATS_RUN_TMPDIR" "${BATS_TEST_TMPDIR%/*}"; do
		chmod a+x "$d"
	done
	run --separate-stderr setpriv --reuid=65534 --regid=65534 --clear-groups vhd-recv --onto dst/disk.vhd <s
	[[ $stderr != *setpriv* ]] || skip "cannot be somebody else here"
	assert_status 77
	[[ $stderr = *"cannot be written to"* ]] || fail "$stderr"
	[ "$(ls -A dst)" = disk.vhd ]
}

@test "a raw disk does not grow" {
	cp src/base.raw dst/disk.raw
	model make src/grown.avhd --size=16M --parent=base.raw --raw-parent --fill=9:4K
	vhd-resize -q --size=17M src/grown.avhd
	vhd-send --from=src/base.raw src/grown.avhd >s
	run --separate-stderr vhd-recv --onto dst/disk.raw <s
	assert_status 78
	cmp src/base.raw dst/disk.raw
	[ ! -e dst/disk.raw.merging ]
}

@test "damage and another disk do not touch it" {
	send >s
	local n
	for n in 60 300 5000 70000 2000000; do
		cp s bad
		printf '\252\125' | dd of=bad bs=1 seek=$n conv=notrunc status=none
		run --separate-stderr vhd-recv --onto dst/disk.vhd <bad
		assert_status 76
		vhd-recv --abort dst/disk.vhd
		[ "$(sha dst/disk.vhd)" = "$base" ] && [ "$(ls -A dst)" = disk.vhd ]
	done
	model make dst/other.vhd --size=16M
	run --separate-stderr vhd-recv --onto dst/other.vhd <s
	assert_status 65
	vhd-send src/base.vhd >whole
	run --separate-stderr vhd-recv --onto dst/disk.vhd <whole
	assert_status 64
	run --separate-stderr vhd-recv --onto dst/gone.vhd <s
	assert_status 66
	refused 64 vhd-recv --onto --parent=src/base.vhd dst/disk.vhd <s
}

@test "killed at any moment: the same command finishes, and the disk is never a third thing" {
	local seed=${QSM_SEED:-$RANDOM} i tries status
	echo "seed $seed"
	RANDOM=$seed
	for i in $(seq "${QSM_KILLS:-3}"); do
		cp src/base.vhd dst/disk.vhd
		for tries in $(seq 60); do
			[ "$tries" -gt 50 ] && fail "does not come to an end, seed $seed, run $i"
			send >stream 2>/dev/null
			# Later and later, so that it ends on any machine
			timeout -s KILL --foreground "$(awk -v r=$RANDOM -v t=$tries 'BEGIN { print r / 32768 * 0.04 * t * 1.1 ^ t + 0.001 }')" \
				vhd-recv --onto dst/disk.vhd <stream >/dev/null 2>err && status=0 || status=$?
			[ $status -ne 0 ] || break
			# 124: it ended by itself while timeout was about to kill it
			[ $status -eq 137 ] || [ $status -eq 124 ] || fail "status $status, seed $seed, run $i, try $tries" "$(cat err)"
			if out=$(vhd-sum dst/disk.vhd 2>/dev/null); then
				case ${out%% *} in
				"$(vhd-sum src/base.vhd | cut -d' ' -f1)" | "$(vhd-sum src/child.avhd | cut -d' ' -f1)") ;;
				*) fail "neither old nor new, seed $seed, run $i, try $tries" ;;
				esac
			fi
		done
		updated
	done
}
