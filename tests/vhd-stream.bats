# SPDX-License-Identifier: BSD-2-Clause
# vhd-stream: stored streams, looked at and mended.
load helper
load disks
load streams

setup() {
	workdir
}

stored() {
	head -c 6M /dev/urandom >disk.raw
	vhd-send --raw --checkpoint=1M "$@" disk.raw >s
}

@test "info of a whole disk and of an increment" {
	model make base.vhd --size=8M --fill=9:4K
	model make child.avhd --parent=base.vhd --fill=9:4K --seed=3
	vhd-send base.vhd >s
	run vhd-stream info --json s
	[ "$(json .kind)" = whole ] && [ "$(json .size)" -eq 8388608 ]
	[ "$(json .uuid)" = "$(vhd-info --json base.vhd | jq -r '.. | .uuid? // empty' | head -n 1)" ]
	vhd-send --from=base.vhd child.avhd | {
		run vhd-stream info --json
		[ "$(json .kind)" = increment ] && [ "$(json .base_uuid)" = "$(vhd-stream info --json s | jq -r .uuid)" ]
	}
	run vhd-stream info s
	assert_output_has 8388608
}

@test "info of a difference" {
	model make old.vhd --size=8M --fill=9:4K
	model make new.vhd --size=8M --fill=9:4K --seed=3
	vhd-sum --blocks old.vhd >sums
	vhd-send --against=sums new.vhd >s
	run vhd-stream info --json s
	[ "$(json .kind)" = difference ]
	[ "$(json .base_uuid)" = "$(head -n 1 sums | cut -d ' ' -f 5)" ]
}

@test "verify says the same as a receiver" {
	stored
	vhd-stream verify --json s >v
	vhd-recv copy <s >r
	[ "$(jq -c '[.stream_sum,.content_sum,.bytes,.records]' v)" = "$(jq -c '[.stream_sum,.content_sum,.bytes,.records]' r)" ]
	run vhd-stream verify <s
	assert_status 0
	assert_output_has whole
}

@test "verify tells the first bad offset" {
	stored
	printf x | dd of=s bs=1 seek=3000000 conv=notrunc status=none
	refused 76 vhd-stream verify s
	[[ $stderr == *"byte 2097"* ]]
	head -c 3000000 s >cut
	refused 76 vhd-stream verify cut
	[[ $stderr == *"go on behind byte $(vhd-stream trim --dry-run --json cut | jq .bytes): vhd-stream trim cut"* ]]
	refused 76 vhd-stream verify <cut
	[[ $stderr != *trim* ]]
	refused 76 vhd-stream verify disk.raw
	refused 66 vhd-stream verify gone
}

@test "dump lists the records as the independent reader does" {
	stored
	vhd-stream dump s | tr -s ' ' >ours
	dump --records s >theirs
	diff ours theirs
	[ "$(vhd-stream dump --json s | jq -s length)" -eq "$(wc -l <theirs)" ]
	head -c 3000000 s | { run vhd-stream dump; assert_status 76; [ "${#lines[@]}" -gt 5 ]; }
}

@test "trim: what is appended makes it a stream like any other" {
	local n t o
	for o in "" --compress; do
		seq 1 900000 | head -c 6M >disk.raw
		vhd-send --raw --checkpoint=200K $o disk.raw >good
		for n in 3000000 1400000 $(($(stat -c %s good) - 1)); do
			[ "$n" -lt "$(stat -c %s good)" ] || continue
			head -c "$n" good >s
			t=$(vhd-stream trim s)
			[ -n "$t" ] && [ "$(stat -c %s s)" -lt "$n" ]
			vhd-send --raw --checkpoint=200K --resume="$t" $o disk.raw >>s
			cmp s good
		done
	done
	dump s >/dev/null
	vhd-recv copy <s
	cmp copy disk.raw
}

@test "trim gives the token that the independent reader gives" {
	stored
	head -c 3500000 s >cut
	[ "$(vhd-stream trim --dry-run cut)" = "$(dump --append cut)" ]
	[ "$(stat -c %s cut)" -eq 3500000 ]
}

@test "trim of an increment" {
	model make base.vhd --size=16M --fill=9:4K
	model make child.avhd --parent=base.vhd --fill=900:4K --seed=3
	vhd-send --checkpoint=300K --from=base.vhd child.avhd >good
	head -c 2000000 good >s
	vhd-send --resume="$(vhd-stream trim s)" --from=base.vhd child.avhd >>s
	vhd-stream verify s
	vhd-recv --parent=base.vhd out <s
	model cmp out child.avhd
}

@test "trim leaves alone what is whole or too short, and what is damaged unless forced" {
	local n
	stored
	unchanged s -- vhd-stream trim s
	assert_status 0
	[ -z "$output" ]
	cp s bad
	printf x | dd of=bad bs=1 seek=3000000 conv=notrunc status=none
	unchanged bad -- vhd-stream trim bad
	assert_status 76
	[[ $stderr == *--force* ]]
	vhd-send --raw --checkpoint=1M --resume="$(vhd-stream trim --force bad)" disk.raw >>bad
	cmp s bad
	for n in 0 5 10 47 48 500000; do
		head -c $n s >short
		unchanged short -- vhd-stream trim short
		assert_status 65
	done
}

@test "the rest of a stream is not one by itself" {
	stored
	head -c 3500000 s | vhd-recv out || :
	vhd-send --raw --resume="$(vhd-recv --token out)" disk.raw >rest
	refused 76 vhd-stream verify rest
}

@test "usage" {
	refused 64 vhd-stream
	refused 64 vhd-stream look s
	refused 64 vhd-stream trim
	refused 64 vhd-stream verify a b
	refused 64 vhd-stream --force verify a
}
