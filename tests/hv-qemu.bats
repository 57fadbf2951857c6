# SPDX-License-Identifier: BSD-2-Clause
# The daemon-less hypervisor: VM folders, ownership records, and real guests.
load helper

setup() {
	cd "$BATS_TEST_TMPDIR" || return
	export QSM_VM_DIR=$PWD/vms QSM_RUN_DIR=$PWD/run QSM_NET_DIR=$PWD/net
	mkdir net
	echo user >net/lan
}

teardown() {
	local f
	hv-qemu list --null 2>/dev/null | while IFS= read -r -d '' f; do
		hv-qemu --quiet stop --force -- "$f" || :
	done
}

need() {
	local p
	for p; do
		command -v "$p" >/dev/null || skip "needs $p"
	done
}

# A VM without a guest: nothing of it is ever started.
small() { # NAME [DEFINE-OPTION…]
	local name=$1
	shift
	[ -e a.vhd ] || vhd-create -q --size=8M a.vhd
	[ -e b.vhd ] || vhd-create -q --size=8M b.vhd
	"$top/tests/lab/guest" domain --network=lan "$name" /boot "vda=$PWD/a.vhd" "vdb=$PWD/b.vhd" >small.xml
	hv-qemu --quiet define "$@" small.xml
}

# The test guest with its two disks; runs when this returns 0.
guest() { # NAME
	need qemu-system-x86_64 nbdkit socat jq xxh128sum gcc cpio
	boot=$("$top/tests/lab/guest" build) || fail "the guest cannot be built"
	"$top/tests/lab/guest" disks . 32M 1M 32M
	vhd-convert -q --from=raw --type=dynamic vda.raw vda.vhd
	vhd-convert -q --from=raw --type=dynamic vdb.raw vdb.vhd
	rm vda.raw vdb.raw
	"$top/tests/lab/guest" domain --network=lan "$1" "$boot" "vda=$PWD/vda.vhd" "vdb=$PWD/vdb.vhd" >guest.xml
	hv-qemu --quiet define guest.xml
	hv-qemu --quiet start "$1"
	console=$(echo run/*/)console.log
	wait_for acknowledged 20
}

acknowledged() { # N more than before
	[ "$(grep -c '^ACK ' "$console" 2>/dev/null || :)" -ge "$1" ]
}

# It goes on writing from now on.
works() {
	local n
	n=$(grep -c '^ACK ' "$console")
	wait_for acknowledged $((n + 10))
}

stands_still() {
	local n
	n=$(grep -c '^ACK ' "$console")
	sleep 0.5
	[ "$(grep -c '^ACK ' "$console")" = "$n" ]
}

# Every acknowledged record is on the disk, the guest never rebooted, and its file system is clean.
nothing_lost() {
	vhd-convert -q --type=raw "$(leaf "$1" vda)" check.raw
	run "$top/tests/lab/guestcheck" check --console "$console" check.raw
	assert_status 0
	assert_output_has lost=0
	assert_output_has reboots=0
}

leaf() { # VM TARGET
	hv-qemu status --json "$1" | jq -j --arg t "$2" '.disks[] | select(.target == $t).leaf'
}

json() { # VM FILTER
	hv-qemu status --json "$1" 2>/dev/null | jq -r "$2"
}

# It ended with all its threads; who started it may not have waited for it.
gone() { # PID
	[ ! -e "/proc/$1" ] || { grep -q '^State:.*[ZX]' "/proc/$1/status" && [ "$(ls "/proc/$1/task" | wc -l)" -le 1 ]; }
}

server_pid() { # TARGET
	cat run/*/"$1.pid"
}

state_is() { # VM STATE
	[ "$(hv-qemu status "$1" 2>/dev/null)" = "$2" ] || fail "not $2 but $(hv-qemu status "$1" 2>&1)"
}

processes() {
	pgrep -f -- "$QSM_RUN_DIR/[0-9a-f-]*/" || :
}

@test "define makes a folder with pointers, a record and a counter" {
	small vm
	[ "$(hv-qemu list)" = vm ]
	[ "$(readlink vms/vm/disks)" = disks.1 ]
	[ "$(readlink vms/vm/disks/vda)" = "$PWD/a.vhd" ]
	[ "$(readlink vms/vm/disks/vdb)" = "$PWD/b.vhd" ]
	grep -q "$QSM_VM_DIR/vm/disks/vda" vms/vm/domain.xml
	[ "$(cat vms/vm/starts)" = 0 ]
	grep -qx 'token -' vms/vm/owner
	[ "$(stat -c %a vms/vm vms/vm/domain.xml vms/vm/owner | tr '\n' ' ')" = "700 600 600 " ]
}

@test "its parts are found when it is installed, also through a symlink" {
	mkdir -p inst/bin inst/share/qsm-tools bin
	cp "$top/scripts/hv-qemu" inst/bin/
	cp "$top"/scripts/qemu-*.sh inst/share/qsm-tools/
	ln -s ../inst/bin/hv-qemu bin/hv-qemu
	small vm
	[ "$(inst/bin/hv-qemu list)" = vm ]
	[ "$(cd bin && sh hv-qemu status vm)" = off ]
}

@test "names with spaces, quotes, newlines, a leading dash and other letters are just names" {
	local n
	for n in "a 'b\" \$(touch x)" "zwei
Zeilen" "-n" 'ü&<>'; do
		small "$n"
		[ "$(hv-qemu status -- "$n")" = off ]
		[ "$(hv-qemu status --json -- "$n" | jq -r .name)" = "$n" ]
		hv-qemu --quiet undefine -- "$n"
	done
	[ -z "$(hv-qemu list)" ]
	[ ! -e x ]
}

@test "a name that would leave the folder is refused" {
	small vm
	hv-qemu dumpxml vm | sed 's,<name>.*</name>,<name>../x</name>,' >evil.xml
	run hv-qemu define evil.xml
	assert_status 65
	run hv-qemu status ../vms/vm
	assert_status 66
}

@test "a disk target that would leave the folder is refused" {
	small vm
	sed "s,dev='vda',dev='../vda',; s,<name>.*</name>,<name>y</name>," small.xml >evil.xml
	run hv-qemu define evil.xml
	assert_status 65
	[ "$(hv-qemu list)" = vm ]
}

@test "define leaves nothing behind when it fails" {
	small vm
	sed "s,$PWD/b.vhd,$PWD/none.vhd,; s,<name>.*</name>,<name>y</name>,; /<uuid>/d" small.xml >bad.xml
	run hv-qemu define bad.xml
	assert_status 66
	[ "$(ls vms)" = vm ]
	[ -z "$(find vms -name '.new*')" ]
}

@test "a name that is here already is 73, as is a UUID" {
	small vm
	run hv-qemu define small.xml
	assert_status 73
	assert_output_has 'already'
	run hv-qemu define --name=other small.xml
	assert_status 73
	assert_output_has 'same UUID'
}

@test "define pins the machine type" {
	need qemu-system-x86_64
	vhd-create -q --size=8M a.vhd
	sed_machine=$(qemu-system-x86_64 -machine help | sed -n 's/^q35 .*(alias of \(.*\))$/\1/p')
	cat >d.xml <<-XML
		<domain type='qemu'><name>vm</name><memory unit='MiB'>64</memory>
		<os><type machine='q35'>hvm</type></os>
		<devices><disk><source file='$PWD/a.vhd'/><target dev='vda'/></disk></devices></domain>
	XML
	hv-qemu --quiet define d.xml
	[ "$(json vm .machine)" = "$sed_machine" ]
	[ "$(json vm .cpu)" = qemu64 ]
}

@test "a domain without UUID and MAC gets them once and keeps them" {
	vhd-create -q --size=8M a.vhd
	echo "<domain><name>vm</name><memory>65536</memory><devices><interface type='user'/></devices></domain>" |
		hv-qemu --quiet define -
	one=$(hv-qemu status --json vm | jq -c '[.uuid, .networks]')
	[ "$one" = "$(hv-qemu status --json vm | jq -c '[.uuid, .networks]')" ]
	[[ $one =~ 52:54:00: ]]
}

@test "dumpxml names the pointers, dumpxml --leaves the files" {
	small vm
	hv-qemu dumpxml vm | grep -qF "$QSM_VM_DIR/vm/disks/vda"
	hv-qemu dumpxml --leaves vm | grep -qF "$PWD/a.vhd"
	! hv-qemu dumpxml --leaves vm | grep -qF "$QSM_VM_DIR"
}

@test "undefine removes the folder and leaves the disks" {
	small vm
	hv-qemu --quiet undefine vm
	[ -z "$(ls -A vms | grep -v lock)" ]
	[ -f a.vhd ] && [ -f b.vhd ]
}

@test "undefine --pending removes only what waits for that token" {
	small vm
	run hv-qemu undefine --pending=T vm
	assert_status 77
	hv-qemu --quiet undefine vm
	small vm --pending=T
	run hv-qemu undefine --pending=U vm
	assert_status 77
	hv-qemu --quiet undefine --pending=T vm
	[ -z "$(hv-qemu list)" ]
}

@test "flags are set, reported and cleared" {
	small vm --ha
	[ "$(json vm '[.autostart, .ha] | tostring')" = '[false,true]' ]
	hv-qemu flag vm autostart on
	hv-qemu flag vm ha off
	[ "$(json vm '[.autostart, .ha] | tostring')" = '[true,false]' ]
}

@test "a pending VM cannot be started, until it is claimed with its token" {
	small vm --pending=T1
	[ "$(json vm '.owner + " " + .token')" = "pending T1" ]
	run hv-qemu start vm
	assert_status 77
	assert_output_has 'not committed'
	run hv-qemu claim --token=T2 vm
	assert_status 77
	hv-qemu claim --token=T1 vm
	[ "$(json vm .owner)" = owner ]
	hv-qemu claim --token=T1 vm
}

@test "a pending VM can be refused, then neither started nor claimed" {
	small vm --pending=T1
	hv-qemu refuse --token=T1 vm
	hv-qemu refuse --token=T1 vm
	[ "$(json vm .owner)" = refused ]
	for verb in start "claim --token=T1"; do
		# shellcheck disable=SC2086
		run hv-qemu $verb vm
		assert_status 77
	done
}

@test "what was claimed cannot be refused any more" {
	small vm --pending=T1
	hv-qemu claim --token=T1 vm
	run hv-qemu refuse --token=T1 vm
	assert_status 77
	[ "$(json vm .owner)" = owner ]
}

@test "what was given away cannot be started, and only its token takes it back" {
	small vm
	hv-qemu yield --to=hostb --token=T1 --starts=0 vm
	hv-qemu yield --to=hostb --token=T1 --starts=0 vm
	[ "$(json vm '.owner + " " + .token + " " + .to')" = "moved T1 hostb" ]
	[ ! -e vms/vm/owner ]
	run hv-qemu start vm
	assert_status 77
	assert_output_has hostb
	run hv-qemu reclaim --token=T2 vm
	assert_status 77
	hv-qemu reclaim --token=T1 vm
	hv-qemu reclaim --token=T1 vm
	[ "$(json vm .owner)" = owner ]
	[ ! -e vms/vm/moved ]
}

@test "yield is refused when the VM was started since" {
	small vm
	echo 3 >vms/vm/starts
	run hv-qemu yield --to=hostb --token=T1 --starts=2 vm
	assert_status 75
	[ "$(json vm .owner)" = owner ]
}

@test "a record that is gone makes the VM unstartable" {
	small vm
	rm vms/vm/owner
	[ "$(json vm .owner)" = none ]
	run hv-qemu start vm
	assert_status 77
}

@test "commands on one VM wait for each other" {
	small vm
	mkdir -p run
	exec 5>"run/$(json vm .uuid).lock"
	flock 5
	hv-qemu yield --to=hostb --token=T1 --starts=0 vm 5>&- &
	sleep 1
	[ -e vms/vm/owner ] || fail "it did not wait"
	exec 5>&-
	wait $!
	[ -e vms/vm/moved ]
}

@test "switch gives all disks other leaves by one rename" {
	small vm
	cp a.vhd a2.vhd
	cp b.vhd b2.vhd
	hv-qemu switch --token=T1 vm "vda=$PWD/a2.vhd" vdb=b2.vhd
	[ "$(leaf vm vda) $(leaf vm vdb)" = "$PWD/a2.vhd $PWD/b2.vhd" ]
	[ "$(readlink vms/vm/disks)" = disks.2 ]
	hv-qemu switch --token=T1 vm vda=a.vhd vdb=b.vhd
	[ "$(leaf vm vda)" = "$PWD/a2.vhd" ]
}

@test "switch wants every disk, and files that are there" {
	small vm
	run hv-qemu switch --token=T1 vm vda=a.vhd
	assert_status 64
	run hv-qemu switch --token=T1 vm vda=a.vhd vdb=none.vhd
	assert_status 66
	[ "$(leaf vm vda)" = "$PWD/a.vhd" ]
}

@test "adopt finds the leaves of a folder, wherever their parents lie in it" {
	mkdir -p "h/Virtual Hard Disks" h/Snapshots
	vhd-create -q --size=8M "h/Virtual Hard Disks/one.vhd"
	vhd-create -q --size=8M "h/Virtual Hard Disks/two.vhd"
	vhd-snap -q --output=h/Snapshots/one.avhd "h/Virtual Hard Disks/one.vhd" >/dev/null
	hv-qemu --quiet adopt --memory=64M h
	[ "$(leaf h vda)" = "$PWD/h/Snapshots/one.avhd" ]
	[ "$(leaf h vdb)" = "$PWD/h/Virtual Hard Disks/two.vhd" ]
	[ "$(json h .memory)" = 67108864 ]
	[ "$(cat vms/h/parent-dirs)" = "$PWD/h" ]
}

@test "adopt --dry-run makes nothing" {
	vhd-create -q --size=8M a.vhd
	run hv-qemu adopt -n --name=x a.vhd
	assert_status 0
	assert_output_has "<name>x</name>"
	[ -z "$(hv-qemu list)" ]
}

@test "adopt of a folder without disks is 66" {
	mkdir empty
	run hv-qemu adopt empty
	assert_status 66
}

@test "check-host names every blocker, one a line" {
	need qemu-system-x86_64 nbdkit
	small vm
	hv-qemu dumpxml vm | sed -e 's,pc-q35-7.2,pc-q35-0.1,; s,qemu64,nosuchcpu,; s,network="lan",network="zz",' \
		-e 's,<name>vm,<name>other,' >d.xml
	run hv-qemu check-host <d.xml
	assert_status 78
	for w in pc-q35-0.1 nosuchcpu zz /boot/vmlinuz 'same UUID'; do
		assert_output_has "$w"
	done
	[ "$(hv-qemu check-host --json <d.xml | jq '.blockers | length')" = "${#lines[@]}" ]
}

@test "check-host refuses devices that are bound to a host" {
	small vm
	hv-qemu dumpxml vm | sed 's,</devices>,<hostdev/><tpm/></devices>,' >d.xml
	run hv-qemu check-host <d.xml
	assert_status 78
	assert_output_has "hostdev, tpm"
}

@test "an option of another verb is refused" {
	small vm
	run hv-qemu start --paused vm
	assert_status 64
	run hv-qemu stop --name=x vm
	assert_status 64
}

@test "every verb refuses a VM that is not there with 66" {
	for verb in undefine dumpxml status start pause resume flush repair stop "claim --token=T" \
		"yield --token=T --to=x --starts=0"; do
		# shellcheck disable=SC2086
		run hv-qemu $verb nobody
		assert_status 66
	done
}

@test "a guest runs, outlives the command that started it, and shuts down when it is asked to" {
	guest 'the "guest"'
	[ "$(json 'the "guest"' '[.state, .starts, .disks[].serving] | tostring')" = '["running",1,true,true]' ]
	run hv-qemu undefine 'the "guest"'
	assert_status 75
	run hv-qemu start 'the "guest"'
	assert_status 75
	hv-qemu --quiet stop 'the "guest"'
	state_is 'the "guest"' off
	grep -q '^END' "$console"
	wait_for eval '[ -z "$(processes)" ]'
	nothing_lost 'the "guest"'
}

# A server that was killed, and a thread of which has the disk, and its lock, until a moment after the file "go"
# is there: a write that is under way. Like the real one it has a file with its number.
ending_server() {
	cat >ending.c <<-'C'
		#include <fcntl.h>
		#include <pthread.h>
		#include <signal.h>
		#include <stdio.h>
		#include <sys/file.h>
		#include <unistd.h>

		static void *last(void *fd)
		{
			while (access("go", F_OK) < 0)
				usleep(10000);
			usleep(300000);
			_exit(0);
			return fd;
		}

		int main(void)
		{
			pthread_t t;
			FILE *f;

			signal(SIGTERM, SIG_IGN);
			if (flock(open("disk", O_RDWR | O_CREAT, 0600), LOCK_EX) < 0 || !(f = fopen("vda.pid", "w")))
				return 1;
			fprintf(f, "%d\n", (int)getpid());
			fclose(f);
			pthread_create(&t, NULL, last, NULL);
			pthread_exit(NULL);
		}
	C
	"${CC:-cc}" -pthread -o nbdkit ending.c
	: >vda.nbd
	./nbdkit 3>&- &
	wait_for eval '[ -s vda.pid ] && grep -q "^State:.*Z" "/proc/$!/status"'
	rd=$PWD uuid=none name=vm started=''
	# shellcheck source=/dev/null
	. "$top/scripts/qemu-process.sh"
	! flock -n disk true || fail "it has no lock"
	ending=$!
	: >go
}

@test "a server that ends has ended when its last thread has" {
	ending_server
	stop_servers
	gone $ending || fail "it still has the disk"
	[ ! -e vda.nbd ]
}

@test "a server that was killed has ended when another one is started in its place" {
	ending_server
	d_target=vda d_readonly=false dir=$PWD
	detach() { gone $ending || fail "it still has the disk"; }
	start_server
}

@test "nothing that runs holds the caller's output open" {
	need timeout
	guest vm
	hv-qemu --quiet stop --force vm
	# A pipe ends when its last writer does.
	run timeout "$patience" sh -c 'hv-qemu start vm 2>&1 | cat'
	assert_status 0
	hv-qemu --quiet pause vm
	hv-qemu --quiet save vm state >/dev/null
	hv-qemu --quiet stop vm
	run timeout "$patience" sh -c 'hv-qemu restore vm - <state 2>&1 3>&1 | cat'
	assert_status 0
	state_is vm running
}

@test "a guest is paused, continued, saved, continued, and loses nothing" {
	guest vm
	hv-qemu --quiet pause vm
	state_is vm paused
	stands_still
	hv-qemu --quiet resume vm
	works
	hv-qemu --quiet save vm state >receipt
	state_is vm handed-over
	[ "$(jq -r .bytes receipt)" = "$(stat -c %s state)" ]
	[ "$(jq -r .xxh128 receipt)" = "$(xxh128sum <state | cut -d' ' -f1)" ]
	[ "$(stat -c %a state)" = 600 ]
	stands_still
	hv-qemu --quiet resume vm
	works
	hv-qemu --quiet stop vm
	nothing_lost vm
}

@test "a saved guest goes on elsewhere in time, from a file and from a pipe" {
	guest vm
	hv-qemu --quiet save vm state >/dev/null
	hv-qemu --quiet stop vm
	state_is vm off
	hv-qemu --quiet restore vm state
	works
	hv-qemu --quiet save vm - 3>receipt >state2
	[ "$(jq -r .xxh128 receipt)" = "$(xxh128sum <state2 | cut -d' ' -f1)" ]
	hv-qemu --quiet stop vm
	cat state2 | hv-qemu --quiet restore --paused vm -
	state_is vm paused
	stands_still
	hv-qemu --quiet resume vm
	works
	[ "$(json vm .starts)" = 3 ]
	hv-qemu --quiet stop vm
	nothing_lost vm
}

@test "a state that is cut short is refused, and nothing runs" {
	guest vm
	hv-qemu --quiet save vm state >/dev/null
	hv-qemu --quiet stop vm
	head -c 5000000 state >short
	run hv-qemu restore vm short
	assert_status 65
	state_is vm off
	wait_for eval '[ -z "$(processes)" ]'
	hv-qemu --quiet restore vm state
	works
}

@test "a save whose reader leaves early fails, and the guest runs on" {
	guest vm
	{ hv-qemu --quiet save vm - 2>err && echo 0 >rc || echo $? >rc; } | head -c 100000 >/dev/null
	[ "$(cat rc)" = 74 ] || fail "$(cat rc err)"
	grep -q 'not saved' err
	works
}

@test "a save that is interrupted leaves the guest as it was" {
	guest vm
	mkfifo pipe
	sleep 600 <pipe 3>&- &
	reader=$!
	hv-qemu --quiet save vm - >pipe 2>err &
	saver=$!
	wait_for eval '[ "$(hv-qemu status vm)" != running ]'
	kill "$saver"
	wait "$saver" && fail "it succeeded"
	works
	hv-qemu --quiet save vm - >pipe 2>err &
	saver=$!
	wait_for eval '[ "$(hv-qemu status vm)" != running ]'
	kill -9 "$saver"
	wait "$saver" || :
	hv-qemu --quiet resume vm
	works
	kill "$reader"
}

@test "save replaces nothing without --force" {
	guest vm
	echo mine >state
	run hv-qemu save vm state
	assert_status 73
	[ "$(cat state)" = mine ]
	state_is vm running
	hv-qemu --quiet save --force vm state >/dev/null
	[ "$(stat -c %s state)" -gt 1000000 ]
}

@test "after yield a saved guest can be neither resumed nor restored, and stop ends it" {
	guest vm
	hv-qemu --quiet save vm state >/dev/null
	run hv-qemu yield --to=b --token=T --starts=7 vm
	assert_status 75
	hv-qemu yield --to=b --token=T --starts=1 vm
	run hv-qemu resume vm
	assert_status 77
	hv-qemu --quiet stop vm
	run hv-qemu restore vm state
	assert_status 77
	wait_for eval '[ -z "$(processes)" ]'
}

@test "a guest that is put aside ends, and start goes on from there" {
	guest vm
	hv-qemu --quiet save vm >receipt
	state_is vm saved
	[ -z "$(processes)" ]
	[ "$(stat -c %a vms/vm/saved vms/vm/saved/state vms/vm/saved/text | tr '\n' ' ')" = "700 600 600 " ]
	[ "$(json vm '"\(.saved.bytes) \(.saved.xxh128) \(.saved.mode)"')" = "$(jq -r '"\(.bytes) \(.xxh128)"' receipt) running" ]
	hv-qemu --quiet start vm
	[ -z "$(ls -d vms/vm/saved* 2>/dev/null)" ]
	[ "$(json vm .saved)" = null ]
	works
	hv-qemu --quiet stop vm
	nothing_lost vm
}

@test "a guest that was paused when it was put aside is paused again, and resume continues it" {
	guest vm
	hv-qemu --quiet pause vm
	hv-qemu --quiet save vm >/dev/null
	hv-qemu --quiet start vm
	state_is vm paused
	stands_still
	hv-qemu --quiet save vm >/dev/null
	hv-qemu --quiet resume vm
	works
	hv-qemu --quiet stop vm
	nothing_lost vm
}

@test "what does not fit a saved guest is refused, and it stays saved" {
	guest vm
	hv-qemu --quiet save vm state >/dev/null
	hv-qemu --quiet resume vm
	hv-qemu --quiet save vm >/dev/null
	run hv-qemu pause vm
	assert_status 75
	run hv-qemu restore vm state
	assert_status 75
	run hv-qemu restore --later vm state
	assert_status 75
	run hv-qemu undefine vm
	assert_status 75
	hv-qemu --quiet save vm
	hv-qemu --quiet stop vm
	hv-qemu --quiet flush vm
	state_is vm saved
}

@test "discard drops what was saved, and so does stop --force" {
	guest vm
	hv-qemu --quiet save vm >/dev/null
	hv-qemu --quiet discard vm
	state_is vm off
	[ -z "$(ls -d vms/vm/saved* 2>/dev/null)" ]
	hv-qemu --quiet discard vm
	hv-qemu --quiet start vm
	hv-qemu --quiet save vm >/dev/null
	hv-qemu --quiet stop --force vm
	state_is vm off
	hv-qemu --quiet start vm
	[ "$(json vm .starts)" = 3 ]
}

@test "without room for its state a guest is not put aside but runs on" {
	guest vm
	run sh -c "trap '' XFSZ; ulimit -f 20000; exec hv-qemu save vm"
	[ "$status" -eq 73 ] || assert_status 74
	assert_output_has 'not saved'
	state_is vm running
	[ -z "$(ls -d vms/vm/saved* 2>/dev/null)" ]
	works
}

@test "an old saved state that comes back is not used over newer disks" {
	guest vm
	hv-qemu --quiet save vm >/dev/null
	cp -a vms/vm/saved old
	hv-qemu --quiet start vm
	works
	hv-qemu --quiet stop vm
	mv old vms/vm/saved
	state_is vm off
	hv-qemu --quiet start vm
	[ ! -e vms/vm/saved ]
	wait_for eval '[ "$(grep -c "^BOOT" "$console")" -eq 2 ]'
}

@test "a saved state that is damaged is not loaded, and stays" {
	guest vm
	hv-qemu --quiet save vm >/dev/null
	printf x | dd of=vms/vm/saved/state bs=1 seek=1000000 conv=notrunc status=none
	run hv-qemu start vm
	assert_status 65
	assert_output_has discard
	state_is vm saved
	[ -z "$(processes)" ]
}

@test "a disk that was snapshot and merged meanwhile does no harm to the saved guest" {
	guest vm
	hv-qemu --quiet save vm >/dev/null
	vhd-snap -q --output=child.avhd vda.vhd >/dev/null
	vhd-merge -q --delete child.avhd
	hv-qemu --quiet start vm
	works
	hv-qemu --quiet stop vm
	nothing_lost vm
}

@test "a state is taken in by a VM that is off, and by one that is pending, but not started there" {
	guest vm
	hv-qemu --quiet pause vm
	hv-qemu --quiet save vm >receipt
	hv-qemu --quiet save vm - 3>receipt2 >state
	cmp receipt receipt2
	hv-qemu --quiet save vm copy >receipt3
	cmp receipt receipt3
	cmp state copy
	state_is vm saved
	hv-qemu --quiet yield --to=b --token=T1 --starts=1 vm
	run hv-qemu start vm
	assert_status 77
	run hv-qemu resume vm
	assert_status 77
	cp "$console" before
	hv-qemu --quiet undefine vm
	hv-qemu --quiet define --pending=T1 guest.xml
	hv-qemu --quiet restore --later --paused vm - <state >receipt4
	cmp receipt receipt4
	state_is vm saved
	run hv-qemu start vm
	assert_status 77
	hv-qemu claim --token=T1 vm
	state_is vm saved
	hv-qemu --quiet start vm
	state_is vm paused
	hv-qemu --quiet resume vm
	wait_for acknowledged 10
	hv-qemu --quiet stop vm
	cat "$console" >>before
	mv before "$console"
	nothing_lost vm
}

# Ends hv-qemu with kill -9 before the Nth call of a program that changes something durable.
deadly() { # N
	local p
	mkdir -p deadly
	echo "$1" >deadly/n
	rm -f deadly/done
	for p in mv sync rm nbdkit qemu-system-x86_64 mkdir; do
		# shellcheck disable=SC2016
		printf '#!/bin/sh\nhere=%s real=%s\n' "$PWD/deadly" "$(PATH=${PATH#"$PWD/deadly:"} command -v "$p")" >"deadly/$p"
		cat >>"deadly/$p" <<-'SH'
			case ${0##*/} in
			nbdkit | qemu*) ;;
			*)
				read -r n <"$here/n"
				echo $((n - 1)) >"$here/n"
				if [ "$n" -eq 1 ]; then
					: >"$here/done"
					kill -9 "$PPID"
					exit 1
				fi
				;;
			esac
			exec "$real" "$@"
		SH
		chmod +x "deadly/$p"
	done
}

killed_everywhere() { # VERB
	local n=0 was
	while :; do
		n=$((n + 1))
		[ "$n" -lt 60 ] || fail "there is no end to the steps"
		deadly "$n"
		PATH=$PWD/deadly:$PATH hv-qemu --quiet "$1" vm >/dev/null 2>err || :
		[ -e deadly/done ] || break
		was=$(hv-qemu status vm 2>/dev/null)
		echo "$1 killed before step $n: $was"
		case $was in
		running | paused | handed-over | saved) ;;
		*) fail "step $n: $was" "$(cat err)" ;;
		esac
		hv-qemu --quiet resume vm
		state_is vm running
		[ ! -e vms/vm/saved ] || fail "step $n: the state is still there"
		works
		[ "$1" = save ] || hv-qemu --quiet save vm >/dev/null
	done
	[ "$n" -gt 5 ] || fail "only $n steps"
}

@test "a save that is killed at any step leaves a guest that goes on" {
	guest vm
	killed_everywhere save
	hv-qemu --quiet start vm
	works
	hv-qemu --quiet stop vm
	nothing_lost vm
}

@test "a start from what was saved that is killed at any step leaves a guest that goes on" {
	guest vm
	hv-qemu --quiet save vm >/dev/null
	killed_everywhere start
	works
	hv-qemu --quiet stop vm
	nothing_lost vm
}

@test "power lost at any step of a start: the saved state is there, or was not used yet" {
	local n=0 p
	guest vm
	hv-qemu --quiet save vm >/dev/null
	while :; do
		n=$((n + 1))
		deadly "$n"
		PATH=$PWD/deadly:$PATH hv-qemu --quiet start vm >/dev/null 2>err || :
		[ -e deadly/done ] || break
		# A guest that runs is ahead of its saved state, which must be gone by then.
		[ "$(hv-qemu status vm 2>/dev/null)" != running ] || [ ! -e vms/vm/saved ] ||
			fail "step $n: it runs, and the state is still there"
		# With what they had open: the next start is refused a disk that one of them still has.
		for p in $(processes); do
			kill -9 "$p" 2>/dev/null || :
			wait_for gone "$p"
		done
		rm -rf run
		case $(hv-qemu status vm) in
		saved) ;;
		off)
			# Only after the state was given up, when the CPUs may go on at once.
			[ ! -e vms/vm/saved ] || fail "step $n: it is still there"
			break
			;;
		*) fail "step $n: $(hv-qemu status vm)" ;;
		esac
	done
	[ "$n" -gt 5 ] || fail "only $n steps"
}

@test "a running guest cannot be given away" {
	guest vm
	run hv-qemu yield --to=b --token=T --starts=1 vm
	assert_status 75
	state_is vm running
}

@test "a disk server that is killed and repaired in time goes unnoticed" {
	guest vm
	local pid
	pid=$(server_pid vda)
	# QEMU waits ten seconds for it.
	kill -9 "$pid"
	wait_for gone "$pid"
	hv-qemu --quiet repair vm
	works
	state_is vm running
	hv-qemu --quiet stop vm
	nothing_lost vm
}

@test "a disk server that is gone for too long pauses the guest, and resume brings it on" {
	guest vm
	kill -9 "$(server_pid vda)"
	wait_for eval '[ "$(json vm ".disks[0].serving")" = false ]'
	run hv-qemu status vm
	assert_output_has 'the server of disk vda died'
	wait_for eval '[ "$(hv-qemu status vm 2>/dev/null)" = paused ]'
	[ "$(json vm .reason)" = "I/O error on its storage" ]
	hv-qemu --quiet resume vm
	works
	hv-qemu --quiet stop vm
	nothing_lost vm
}

@test "a QEMU that is killed is a crash, and the VM starts again" {
	guest vm
	kill -9 "$(json vm .pid)"
	wait_for eval '[ "$(hv-qemu status vm 2>/dev/null)" = crashed ]'
	run hv-qemu resume vm
	assert_status 75
	hv-qemu --quiet start vm
	state_is vm running
	[ "$(json vm .starts)" = 2 ]
}

@test "a QEMU that does not answer lets nobody wait for ever, however many look, and stop --force ends it" {
	local pids='' p status
	guest vm
	kill -STOP "$(json vm .pid)"
	for p in 1 2 3 4; do
		timeout "$patience" hv-qemu status vm 2>"err.$p" &
		pids="$pids $!"
	done
	for p in $pids; do
		status=0
		wait "$p" || status=$?
		assert_status 69
	done
	grep -q 'does not answer' err.1
	hv-qemu --quiet stop --force vm
	state_is vm off
	[ -z "$(processes)" ]
}

@test "a guest that switches itself off leaves nothing running" {
	guest vm
	hv-qemu --quiet stop --force vm
	sed -i 's/panic=-1/panic=-1 qsm.count=30/' vms/vm/domain.xml
	hv-qemu --quiet start vm
	wait_for eval '[ "$(hv-qemu status vm)" = off ]'
	wait_for eval '[ -z "$(processes)" ]'
}

@test "autostart starts what has the flag, and nothing that has moved" {
	guest vm
	hv-qemu --quiet stop --force vm
	hv-qemu flag vm autostart on
	hv-qemu autostart
	state_is vm running
	hv-qemu --quiet stop --force vm
	hv-qemu yield --to=b --token=T --starts=2 vm
	hv-qemu autostart
	state_is vm off
}

@test "the leaf that a live snapshot made is the one that the next start opens" {
	guest vm
	vhd-snap -q --live="$(json vm .disks[0].control)" --output="$PWD/vda.avhd" vda.vhd >/dev/null
	[ "$(leaf vm vda)" = "$PWD/vda.avhd" ]
	works
	hv-qemu --quiet stop --force vm
	hv-qemu --quiet start vm
	works
	[ "$(leaf vm vda)" = "$PWD/vda.avhd" ]
}
