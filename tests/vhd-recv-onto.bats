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

@test "a raw disk, also" {
	cp src/base.raw dst/disk.raw
	head -c 16M /dev/urandom >new.raw
	vhd-sum -q --blocks dst/disk.raw >sums 2>/dev/null
	vhd-send --raw --against=sums new.raw | vhd-recv --onto dst/disk.raw
	cmp new.raw dst/disk.raw
}

@test "interrupted: the disk is as it was, and both ways are open" {
	send | head -c 2000000 | vhd-recv --onto dst/disk.vhd || [ $? -eq 76 ]
	[ "$(sha dst/disk.vhd)" = "$base" ]
	vhd-recv --abort dst/disk.vhd
	[ "$(ls -A dst)" = disk.vhd ]
	send | head -c 2000000 | vhd-recv --onto dst/disk.vhd || [ $? -eq 76 ]
	[ "$(send | tee rest | wc -c)" -lt 3000000 ]
	vhd-recv --onto dst/disk.vhd <rest
	updated
}

@test "a base that was written to in between is left alone" {
	send | head -c 2000000 | vhd-recv --onto dst/disk.vhd || [ $? -eq 76 ]
	model write dst/disk.vhd --fill=1:512 --seed=77 --zeros=0
	base=$(sha dst/disk.vhd)
	send >rest
	run --separate-stderr vhd-recv --onto dst/disk.vhd <rest
	assert_status 65
	[[ $stderr == *"written to"* ]]
	[ "$(sha dst/disk.vhd)" = "$base" ]
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
			# Later and later, so that it ends
			timeout -s KILL --foreground "$(awk -v r=$RANDOM -v t=$tries 'BEGIN { print r / 32768 * 0.04 * t + 0.001 }')" \
				vhd-recv --onto dst/disk.vhd <stream >/dev/null 2>err && status=0 || status=$?
			[ $status -ne 0 ] || break
			[ $status -eq 137 ] || fail "status $status, seed $seed, run $i, try $tries" "$(cat err)"
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
