# SPDX-License-Identifier: BSD-2-Clause
# shellcheck shell=sh
#
# Processes: QEMU, and the server of each disk.
# Part of hv-qemu, which sources it; most variables here are the script's.
# shellcheck disable=SC2034,SC2154

make_run_dir() { # needs load_domain
	mkdir -p -- "$rd" || die 73 "cannot make $rd"
	longest=status.sock
	for i in $all_disks; do
		disk "$i"
		[ ${#d_target} -le $((${#longest} - 4)) ] || longest=$d_target.nbd
	done
	# The name of a socket has at most 107 bytes.
	[ ${#rd} -le $((106 - ${#longest})) ] ||
		die 64 "$rd is too long for sockets: set QSM_RUN_DIR to a shorter folder"
}

# The process exists and is the one that was started with MARK on its command line.
alive() { # PID MARK
	[ -n "$1" ] && grep -qF -e "$2" "/proc/$1/cmdline" 2>/dev/null
}

# It ended with all its threads, and what they had open is closed; nobody may have waited for it
# yet. (Its command line is no sign: it is empty for a moment while a process executes another
# program, and from when it begins to end, which takes as long as the writes that are under way.)
gone() { # PID
	case $(sed -n 's/^State:[[:space:]]*//p; s/^Threads:/, threads:/p' "/proc/$1/status" 2>/dev/null | tr -d '\n\t') in
	'' | [ZX]*', threads:'[01]) return 0 ;;
	esac
	return 1
}

# It is such a program, and on its way to its end: it has no command line any more, and is not gone.
ending() { # PID PROGRAM
	{ [ -n "$1" ] && read -r comm <"/proc/$1/comm"; } 2>/dev/null || return 1
	case $comm in
	"$2"*) ;;
	*) return 1 ;;
	esac
	! grep -q . "/proc/$1/cmdline" 2>/dev/null && ! gone "$1"
}

born() { # PID: with its number, its identity
	sed -n 's/^.*) //p' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20
}

pid_of() { # PIDFILE
	the_pid=''
	[ ! -f "$1" ] || read -r the_pid <"$1" || :
	case $the_pid in
	*[!0-9]*) the_pid='' ;;
	esac
}

qemu_alive() {
	pid_of "$rd/qemu.pid"
	qemu_pid=$the_pid
	alive "$qemu_pid" "$uuid"
}

server_alive() { # TARGET
	pid_of "$rd/$1.pid"
	server_pid=$the_pid
	alive "$server_pid" "$uuid/$1.nbd"
}

wait_gone() { # PID TENTHS
	tenths=$(($2 * 2))
	birth=$(born "$1")
	until gone "$1" || [ "$(born "$1")" != "$birth" ]; do
		tenths=$((tenths - 1))
		[ $tenths -gt 0 ] || return 1
		sleep 0.05
	done
}

# Runs with nothing of ours: no terminal, no pipe, no lock, no session. And no parent: nbdkit has
# the kernel end it together with whoever started it, so it is not executed before that process is
# gone.
# shellcheck disable=SC2016
orphan='while [ "$(sed -n "s/^PPid:[[:space:]]*//p" "/proc/$$/status")" = "$1" ]; do
		sleep 0.01
	done
	shift
	exec "$@"'
# shellcheck disable=SC2016
detach='cd / || exit
	log=$1 orphan=$2
	shift 2
	setsid sh -c "$orphan" sh "$$" "$@" >>"$log" 2>&1 </dev/null &
	echo "$!"'

detach() { # LOG COMMAND...
	detach_log=$1
	shift
	detached=$(exec sh -c "$detach" sh "$detach_log" "$orphan" "$@" \
		2>/dev/null 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-)
}
detached=''

show_log() { # FILE: its last lines, to stderr
	[ ! -s "$1" ] || tail -n 5 "$1" | sed 's/^/hv-qemu:   /' >&2
}

start_server() { # reads d_*
	# One that was killed has the disk until its last write has ended.
	pid_of "$rd/$d_target.pid"
	! ending "$the_pid" nbdkit || wait_gone "$the_pid" 100 || :
	rm -f -- "$rd/$d_target.nbd" "$rd/$d_target.ctl" "$rd/$d_target.pid"
	: >"$rd/$d_target.log"
	set -- nbdkit -f -U "$rd/$d_target.nbd" -P "$rd/$d_target.pid"
	[ "$d_readonly" != true ] || set -- "$@" -r
	# It ends with its only client: nothing stays behind when the guest switches itself off.
	set -- "$@" --filter=exitlast "${QSM_PLUGIN:-vhd}" file="$dir/disks/$d_target" \
		control="$rd/$d_target.ctl" owner="$dir/owner"
	if [ -f "$dir/parent-dirs" ]; then
		while IFS= read -r parent_dir; do
			set -- "$@" parent-dir="$parent_dir"
		done <"$dir/parent-dirs"
	fi
	detach "$rd/$d_target.log" "$@"
	started="$started $detached"
}
started=''

# nbdkit writes its pid once it listens.
wait_server() { # PID; reads d_*
	tries=0
	until [ -s "$rd/$d_target.pid" ]; do
		if gone "$1" || [ $tries -ge 1500 ]; then
			warn "$name: the server of disk $d_target does not start"
			show_log "$rd/$d_target.log"
			exit 74
		fi
		tries=$((tries + 1))
		sleep 0.02
	done
}

start_servers() {
	need nbdkit setsid
	for i in $all_disks; do
		disk "$i"
		start_server
		eval "server_$i=\$detached"
	done
	for i in $all_disks; do
		disk "$i"
		eval "wait_server \"\$server_$i\""
	done
}

# Only once QEMU is gone: nbdkit waits for its clients.
stop_servers() {
	for p in $started; do
		alive "$p" "$uuid" || continue
		kill "$p" 2>/dev/null
		wait_gone "$p" 100 || kill -9 "$p" 2>/dev/null
	done
	started=''
	for f in "$rd"/*.nbd; do
		[ -e "$f" ] || continue
		t=$(basename "$f" .nbd)
		if server_alive "$t" || ending "$server_pid" nbdkit; then
			kill "$server_pid" 2>/dev/null
			wait_gone "$server_pid" 100 ||
				die 74 "$name: the server of disk $t (pid $server_pid) does not end"
		fi
		rm -f -- "$rd/$t.nbd" "$rd/$t.ctl" "$rd/$t.pid"
	done
}

# Names the disks whose server died under a living QEMU. Needs load_domain.
dead_servers() {
	dead=''
	qemu_alive || return 0
	for i in $all_disks; do
		disk "$i"
		server_alive "$d_target" || dead="$dead $d_target"
	done
}
dead=''

end_qemu() {
	if qemu_alive || ending "$qemu_pid" qemu-; then
		kill -9 "$qemu_pid" 2>/dev/null
		wait_gone "$qemu_pid" 100 ||
			die 74 "$name: QEMU (pid $qemu_pid) does not end"
	fi
	rm -f -- "$rd/qemu.pid" "$rd/qmp.sock" "$rd/status.sock"
}

tear_down() {
	qmp_close
	end_qemu
	stop_servers
}

esc() { # VALUE: as QEMU's option parser wants it
	printf '%s' "$1" | sed 's/,/,,/g'
}

start_qemu() { # [defer]
	incoming=${1:-}
	accel=tcg
	[ "$dom_type" != kvm ] || accel=kvm
	need "qemu-system-$dom_arch" setsid
	set -- "qemu-system-$dom_arch" -nodefaults -no-user-config -display none -vga none -S \
		-name "guest=$(esc "$name")" -uuid "$uuid" \
		-machine "$dom_machine,accel=$accel" -cpu "$dom_cpu" -smp "$dom_vcpus" \
		-m "$((dom_memory / 1024))k" -pidfile "$rd/qemu.pid" \
		-qmp "unix:$(esc "$rd/status.sock"),server=on,wait=off" \
		-qmp "unix:$(esc "$rd/qmp.sock"),server=on,wait=off" \
		-chardev "file,id=serial0,append=on,path=$(esc "$rd/console.log")" \
		-device isa-serial,chardev=serial0 -boot strict=on
	[ -z "$incoming" ] || set -- "$@" -incoming "$incoming"
	[ -z "$dom_kernel" ] || set -- "$@" -kernel "$dom_kernel"
	[ -z "$dom_initrd" ] || set -- "$@" -initrd "$dom_initrd"
	[ -z "$dom_cmdline" ] || set -- "$@" -append "$dom_cmdline"
	on_virtio=0 on_sata=0 on_ide=0 on_scsi=0
	for i in $all_disks; do
		disk "$i"
		disk_qemu
		[ "$d_bus/$on_scsi" != scsi/1 ] || set -- "$@" -device virtio-scsi-pci,id=scsi0
		set -- "$@" -blockdev "$blockdev" -device "$disk_dev"
	done
	for i in $all_nics; do
		nic "$i"
		nic_qemu
		set -- "$@" -netdev "$netdev,id=net$i" -device "$nic_dev"
	done
	: >"$rd/qemu.log"
	detach "$rd/qemu.log" "$@"
	wait_qemu "$detached"
}

# -blockdev and -device of the disk that disk() has read.
disk_qemu() {
	case $d_bus in
	virtio) n=$on_virtio on_virtio=$((n + 1)) ;;
	sata) n=$on_sata on_sata=$((n + 1)) ;;
	ide) n=$on_ide on_ide=$((n + 1)) ;;
	scsi) n=$on_scsi on_scsi=$((n + 1)) ;;
	esac
	disk_device "$d_bus" "$n" || die 65 "$name: disk $d_target: bus $d_bus is not supported"
	[ -z "$d_serial" ] || disk_dev=$disk_dev,serial=$(esc "$d_serial")
	# Without a kernel and an order of its own: the disks as they are listed, after those that have
	# one.
	[ "$d_boot" != 0 ] || [ -n "$dom_kernel" ] || d_boot=$((i + 20000))
	[ "$d_boot" = 0 ] || disk_dev=$disk_dev,bootindex=$d_boot
	disk_dev=$disk_dev,drive=node$i,id=disk-$d_target,werror=stop,rerror=stop
	blockdev=driver=nbd,node-name=node$i,server.type=unix,server.path=$(esc "$rd/$d_target.nbd")
	blockdev=$blockdev,reconnect-delay=10,discard=unmap,cache.direct=on,cache.no-flush=off
	[ "$d_readonly" != true ] || blockdev=$blockdev,read-only=on
}
n=0 on_virtio=0 on_sata=0 on_ide=0 on_scsi=0

nic_qemu() {
	nic_device "$n_model" || die 65 "$name: network card model $n_model is not supported"
	nic_netdev || die 69 "$name: $net_missing"
	nic_dev=$nic_dev,netdev=net$i,id=nic$i,mac=$n_mac
	# A boot ROM is part of the state and differs between hosts: only who boots from it gets one.
	if [ "$n_boot" = 0 ]; then
		nic_dev=$nic_dev,romfile=
	else
		nic_dev=$nic_dev,bootindex=$n_boot
	fi
}

wait_qemu() { # PID
	tries=0
	until qemu_alive && [ -S "$rd/qmp.sock" ] && qmp_open; do
		if gone "$1" || [ $tries -ge 1500 ]; then
			kill -9 "$1" 2>/dev/null
			warn "$name: QEMU does not start"
			show_log "$rd/qemu.log"
			exit 74
		fi
		tries=$((tries + 1))
		sleep 0.02
	done
}
