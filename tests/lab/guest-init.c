// SPDX-License-Identifier: BSD-2-Clause
/*
 * /init of the test guest: a whole operating system in one static program.
 *
 * It writes numbered, checksummed records to one disk and files to another, and says on the serial
 * console what it was told is safe. tests/lab/guestcheck reads the disks and the console
 * afterwards; the record layout and the order of the slots below are its contract and stand in both
 * files.
 *
 * Kernel command line:
 *   qsm.rec=vda           disk of the records ("-": none)
 *   qsm.rate=200          records a second, 0: as fast as it goes
 *   qsm.count=0           power off after so many records
 *   qsm.fs=vdb            disk of the file system ("-": none)
 *   qsm.files=20          files a second
 *   qsm.ip=10.0.2.15/24   address of the first NIC
 *
 * Console, one write(2) a line:
 *   BOOT id                    once at start
 *   ALIVE id uptime            once a second
 *   START seq                  number of the first record of this boot
 *   ACK seq uptime latency     record is written and synced; seconds, microseconds
 *   FILE seq uptime            file is written, synced, renamed, folder synced
 *   NET name mac sent          once a second: datagrams sent by the first NIC
 *   FAIL what: why             an error the guest was given
 *   END acks                   clean power off: everything unmounted
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/input.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define RECORD_SIZE 4096
#define FILE_SLOTS 64
#define FILE_RECORDS_MAX 16

struct options {
	char rec[32];
	char fs[32];
	char ip[32];
	unsigned long rate;
	unsigned long files;
	unsigned long count;
};

static int tty = 2;
static char boot_id[37];
static volatile sig_atomic_t stopping;

__attribute__((format(printf, 1, 2))) static void say(const char *fmt, ...)
{
	char line[256];
	va_list ap;

	va_start(ap, fmt);
	int n = vsnprintf(line, sizeof(line) - 1, fmt, ap);
	va_end(ap);
	if (n > (int)sizeof(line) - 2)
		n = sizeof(line) - 2;
	line[n++] = '\n';
	/* One call a line: lines of several processes never mix. */
	for (int done = 0; done < n;) {
		ssize_t w = write(tty, line + done, n - done);
		if (w < 0 && errno != EINTR)
			return;
		if (w > 0)
			done += w;
	}
}

static void fail(const char *what)
{
	say("FAIL %s: %s", what, strerror(errno));
}

static int64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_BOOTTIME, &ts);
	return ts.tv_sec * INT64_C(1000000) + ts.tv_nsec / 1000;
}

static void sleep_until(int64_t us)
{
	struct timespec ts = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};

	clock_nanosleep(CLOCK_BOOTTIME, TIMER_ABSTIME, &ts, NULL);
}

/* The next moment of a steady rate; a late one does not make the next ones hurry. */
static void pace(int64_t *next, unsigned long rate)
{
	int64_t now = now_us();

	if (rate == 0)
		return;
	*next += 1000000 / (int64_t)rate;
	if (*next > now)
		sleep_until(*next);
	else
		*next = now;
}

static size_t read_text(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, buf, size - 1);

	if (fd >= 0)
		close(fd);
	if (n < 0)
		n = 0;
	while (n > 0 && buf[n - 1] == '\n')
		n--;
	buf[n] = 0;
	return n;
}

/* ---- records -------------------------------------------------------------------------------- */

static void put_le(uint8_t *p, uint64_t v, int n)
{
	for (int i = 0; i < n; i++)
		p[i] = v >> (8 * i);
}

static uint64_t get_le(const uint8_t *p, int n)
{
	uint64_t v = 0;

	for (int i = n; i-- > 0;)
		v = v << 8 | p[i];
	return v;
}

static uint32_t crc32_of(const uint8_t *p, size_t len)
{
	static uint32_t table[256];
	uint32_t c;

	if (table[1] == 0) {
		for (uint32_t n = 0; n < 256; n++) {
			c = n;
			for (int k = 0; k < 8; k++)
				c = c & 1 ? 0xedb88320u ^ c >> 1 : c >> 1;
			table[n] = c;
		}
	}
	c = 0xffffffffu;
	while (len-- > 0)
		c = table[(c ^ *p++) & 0xff] ^ c >> 8;
	return ~c;
}

/*
 * A record: "QSMREC1\n", sequence, index (slot, or number within a file), uptime in us (8 bytes
 * each, little-endian), boot id (36), pseudo-random bytes, CRC-32 of all before it in the last 4.
 */
static void record_fill(uint8_t *rec, uint64_t seq, uint64_t index)
{
	uint64_t x = (seq + 1) * UINT64_C(0x9e3779b97f4a7c15) ^ index;

	memcpy(rec, "QSMREC1\n", 8);
	put_le(rec + 8, seq, 8);
	put_le(rec + 16, index, 8);
	put_le(rec + 24, now_us(), 8);
	memcpy(rec + 32, boot_id, 36);
	for (int i = 68; i < RECORD_SIZE - 4; i += 4) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		put_le(rec + i, x, 4);
	}
	put_le(rec + RECORD_SIZE - 4, crc32_of(rec, RECORD_SIZE - 4), 4);
}

static int record_valid(const uint8_t *rec)
{
	return memcmp(rec, "QSMREC1\n", 8) == 0 &&
	       get_le(rec + RECORD_SIZE - 4, 4) == crc32_of(rec, RECORD_SIZE - 4);
}

/*
 * Where record seq goes: a permutation of the slots (four Feistel rounds, walked until inside), so
 * that the records are scattered and none is overwritten before the whole disk was written once.
 */
static uint64_t slot_of(uint64_t seq, uint64_t slots)
{
	static const uint32_t keys[4] = {0x51ed270bu, 0xb492b66fu, 0x9ae16a3bu, 0xc949c7dfu};
	uint64_t v = seq % slots;
	int half = 1;

	while (half < 31 && (UINT64_C(1) << (2 * half)) < slots)
		half++;
	uint32_t mask = (uint32_t)((UINT64_C(1) << half) - 1);
	do {
		uint32_t left = v >> half, right = v & mask;

		for (int i = 0; i < 4; i++) {
			uint32_t f = (right ^ keys[i]) * 0x85ebca6bu;

			f = (f ^ f >> 13) * 0xc2b2ae35u;
			f = (f ^ f >> 16) & mask;
			f ^= left;
			left = right;
			right = f;
		}
		v = (uint64_t)left << half | right;
	} while (v >= slots);
	return v;
}

/* The sequence in the slot of seq, or -1. */
static int64_t seq_at(int fd, uint8_t *buf, uint64_t seq, uint64_t slots)
{
	uint64_t slot = slot_of(seq, slots);

	if (pread(fd, buf, RECORD_SIZE, (off_t)(slot * RECORD_SIZE)) != RECORD_SIZE ||
	    !record_valid(buf))
		return -1;
	return (int64_t)get_le(buf + 8, 8);
}

/* First sequence that is not on the disk yet: records are written in order, so halving finds it. */
static uint64_t first_free(int fd, uint8_t *buf, uint64_t slots)
{
	int64_t first = seq_at(fd, buf, 0, slots);

	if (first < 0)
		return 0;
	uint64_t lo = (uint64_t)first, hi = lo + slots;
	while (hi - lo > 1) {
		uint64_t mid = lo + (hi - lo) / 2;

		if (seq_at(fd, buf, mid, slots) == (int64_t)mid)
			lo = mid;
		else
			hi = mid;
	}
	return lo + 1;
}

static void on_term(int sig)
{
	(void)sig;
	stopping = 1;
}

static int disk_open(const char *name)
{
	char path[48];

	snprintf(path, sizeof(path), "/dev/%s", name);
	return open(path, O_RDWR | O_DIRECT | O_CLOEXEC);
}

static int write_records(const struct options *opt)
{
	uint64_t size = 0, seq, acks = 0;
	void *mem = NULL;
	int fd = disk_open(opt->rec);

	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size) != 0 ||
	    posix_memalign(&mem, RECORD_SIZE, RECORD_SIZE) != 0) {
		fail(opt->rec);
		return 1;
	}
	uint64_t slots = size / RECORD_SIZE;
	seq = first_free(fd, mem, slots);
	say("START %llu", (unsigned long long)seq);
	for (int64_t next = now_us(); !stopping; seq++) {
		uint64_t slot = slot_of(seq, slots);
		int64_t began;

		record_fill(mem, seq, slot);
		began = now_us();
		if (pwrite(fd, mem, RECORD_SIZE, (off_t)(slot * RECORD_SIZE)) != RECORD_SIZE ||
		    fdatasync(fd) != 0) {
			/* Never skipped: a hole in the sequence would hide it. */
			fail("write");
			return 1;
		}
		int64_t end = now_us();
		say("ACK %llu %lld.%06lld %lld", (unsigned long long)seq,
		    (long long)(end / 1000000), (long long)(end % 1000000),
		    (long long)(end - began));
		if (++acks == opt->count)
			break;
		pace(&next, opt->rate);
	}
	return 0;
}

/* ---- files ---------------------------------------------------------------------------------- */

static int file_put(uint64_t seq, uint8_t *rec)
{
	char name[32];
	int nrec = 1 + (int)(seq % FILE_RECORDS_MAX);
	int fd = open("new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	if (fd < 0)
		return -1;
	for (int i = 0; i < nrec; i++) {
		record_fill(rec, seq, i);
		if (write(fd, rec, RECORD_SIZE) != RECORD_SIZE) {
			close(fd);
			return -1;
		}
	}
	if (fsync(fd) != 0) {
		close(fd);
		return -1;
	}
	if (close(fd) != 0)
		return -1;
	snprintf(name, sizeof(name), "f%02d", (int)(seq % FILE_SLOTS));
	return rename("new", name);
}

/* The highest sequence among the files of an earlier boot, plus one. */
static uint64_t file_next(uint8_t *rec)
{
	uint64_t next = 0;

	for (int i = 0; i < FILE_SLOTS; i++) {
		char name[32];
		int fd;

		snprintf(name, sizeof(name), "f%02d", i);
		fd = open(name, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (read(fd, rec, RECORD_SIZE) == RECORD_SIZE && record_valid(rec) &&
		    get_le(rec + 8, 8) + 1 > next)
			next = get_le(rec + 8, 8) + 1;
		close(fd);
	}
	return next;
}

static int write_files(const struct options *opt)
{
	static uint8_t rec[RECORD_SIZE];
	int dir;

	if ((mkdir("/mnt/files", 0755) != 0 && errno != EEXIST) || chdir("/mnt/files") != 0 ||
	    (dir = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0) {
		fail("/mnt/files");
		return 1;
	}
	uint64_t seq = file_next(rec);
	for (int64_t next = now_us(); !stopping; seq++) {
		if (file_put(seq, rec) != 0 || fsync(dir) != 0) {
			fail("file");
			return 1;
		}
		int64_t end = now_us();
		say("FILE %llu %lld.%06lld", (unsigned long long)seq, (long long)(end / 1000000),
		    (long long)(end % 1000000));
		pace(&next, opt->files);
	}
	return 0;
}

/* ---- network -------------------------------------------------------------------------------- */

static int nic_find(char name[IF_NAMESIZE], char *mac, size_t mac_size)
{
	char path[300];
	DIR *d = opendir("/sys/class/net");
	struct dirent *e;
	int found = 0;

	while (d && !found && (e = readdir(d))) {
		if (e->d_name[0] == '.' || strcmp(e->d_name, "lo") == 0)
			continue;
		snprintf(name, IF_NAMESIZE, "%.*s", IF_NAMESIZE - 1, e->d_name);
		snprintf(path, sizeof(path), "/sys/class/net/%s/address", name);
		read_text(path, mac, mac_size);
		found = 1;
	}
	if (d)
		closedir(d);
	return found ? 0 : -1;
}

static int nic_up(int s, const char *name, const char *ip)
{
	struct ifreq req = {0};
	struct sockaddr_in *sin = (struct sockaddr_in *)&req.ifr_addr;
	char addr[32];
	char *slash;

	snprintf(addr, sizeof(addr), "%s", ip);
	slash = strchr(addr, '/');
	int bits = slash ? (int)strtol(slash + 1, NULL, 10) : 24;
	if (slash)
		*slash = 0;
	snprintf(req.ifr_name, sizeof(req.ifr_name), "%s", name);
	sin->sin_family = AF_INET;
	if (inet_pton(AF_INET, addr, &sin->sin_addr) != 1 || ioctl(s, SIOCSIFADDR, &req) != 0)
		return -1;
	sin->sin_addr.s_addr = htonl(bits > 0 && bits <= 32 ? ~UINT32_C(0) << (32 - bits) : 0);
	if (ioctl(s, SIOCSIFNETMASK, &req) != 0 || ioctl(s, SIOCGIFFLAGS, &req) != 0)
		return -1;
	req.ifr_flags |= IFF_UP | IFF_RUNNING;
	return ioctl(s, SIOCSIFFLAGS, &req);
}

static int use_network(const struct options *opt)
{
	char name[IF_NAMESIZE], mac[32];
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};
	unsigned long sent = 0;
	int one = 1, s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (nic_find(name, mac, sizeof(mac)) != 0)
		return 0;
	if (s < 0 || nic_up(s, name, opt->ip) != 0) {
		fail(name);
		return 1;
	}
	to.sin_addr.s_addr = htonl(INADDR_BROADCAST);
	setsockopt(s, SOL_SOCKET, SO_BROADCAST, &one, sizeof(one));
	setsockopt(s, SOL_SOCKET, SO_BINDTODEVICE, name, strlen(name) + 1);
	while (!stopping) {
		if (sendto(s, boot_id, 36, 0, (struct sockaddr *)&to, sizeof(to)) == 36)
			sent++;
		say("NET %s %s %lu", name, mac, sent);
		sleep(1);
	}
	return 0;
}

/* ---- pid 1 ---------------------------------------------------------------------------------- */

/* Order does not matter: a module that needs others is tried again in the next pass. */
static void load_modules(void)
{
	for (int pass = 0, progress = 1; pass < 8 && progress; pass++) {
		DIR *d = opendir("/modules");
		struct dirent *e;

		progress = 0;
		while (d && (e = readdir(d))) {
			char path[300];
			int fd;

			if (e->d_name[0] == '.')
				continue;
			snprintf(path, sizeof(path), "/modules/%s", e->d_name);
			fd = open(path, O_RDONLY | O_CLOEXEC);
			if (fd < 0)
				continue;
			if (syscall(SYS_finit_module, fd, "", 0) == 0 || errno == EEXIST) {
				unlink(path);
				progress = 1;
			}
			close(fd);
		}
		if (d)
			closedir(d);
	}
}

static void console_open(void)
{
	struct termios t;
	int fd = open("/dev/ttyS0", O_RDWR | O_NOCTTY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (tcgetattr(fd, &t) == 0) {
		cfmakeraw(&t);
		tcsetattr(fd, TCSANOW, &t);
	}
	tty = fd;
}

static void options_read(struct options *opt)
{
	char line[2048];
	struct {
		const char *name;
		char *text;
		unsigned long *number;
	} known[] = {
		{"qsm.rec", opt->rec, NULL},	  {"qsm.fs", opt->fs, NULL},
		{"qsm.ip", opt->ip, NULL},	  {"qsm.rate", NULL, &opt->rate},
		{"qsm.files", NULL, &opt->files}, {"qsm.count", NULL, &opt->count},
	};

	*opt = (struct options){
		.rec = "vda", .fs = "vdb", .ip = "10.0.2.15/24", .rate = 200, .files = 20};
	read_text("/proc/cmdline", line, sizeof(line));
	for (char *save = NULL, *w = strtok_r(line, " ", &save); w;
	     w = strtok_r(NULL, " ", &save)) {
		char *value = strchr(w, '=');

		if (!value)
			continue;
		*value++ = 0;
		for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
			if (strcmp(w, known[i].name) != 0)
				continue;
			if (known[i].text)
				snprintf(known[i].text, sizeof(opt->rec), "%s", value);
			else
				*known[i].number = strtoul(value, NULL, 10);
		}
	}
}

/* The disk is there at once or after its module: virtio probes in the background. */
static int disk_wait(const char *name)
{
	char path[64];

	snprintf(path, sizeof(path), "/dev/%s", name);
	for (int i = 0; i < 50 && strcmp(name, "-") != 0; i++) {
		if (access(path, F_OK) == 0)
			return 0;
		usleep(20000);
	}
	return -1;
}

static pid_t start(int (*job)(const struct options *), const struct options *opt)
{
	pid_t pid = fork();

	if (pid == 0) {
		signal(SIGTERM, on_term);
		_exit(job(opt));
	}
	return pid;
}

/* Keyboards have the key too: all devices that can send it are watched. */
static int power_buttons(struct pollfd *fds, int max)
{
	int n = 0;

	for (int i = 0; i < 16 && n < max; i++) {
		char path[32];
		uint8_t bits[KEY_MAX / 8 + 1] = {0};
		int fd;

		snprintf(path, sizeof(path), "/dev/input/event%d", i);
		fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (ioctl(fd, EVIOCGBIT(EV_KEY, sizeof(bits)), bits) >= 0 &&
		    (bits[KEY_POWER / 8] >> KEY_POWER % 8 & 1))
			fds[n++] = (struct pollfd){.fd = fd, .events = POLLIN};
		else
			close(fd);
	}
	return n;
}

static int button_pressed(int fd)
{
	struct input_event ev;
	int pressed = 0;

	while (read(fd, &ev, sizeof(ev)) == (ssize_t)sizeof(ev))
		if (ev.type == EV_KEY && ev.code == KEY_POWER && ev.value == 1)
			pressed = 1;
	return pressed;
}

static void power_off(const char *why)
{
	kill(-1, SIGTERM);
	while (wait(NULL) > 0 || errno == EINTR)
		;
	if (umount("/mnt") != 0 && errno != EINVAL)
		fail("umount");
	sync();
	say("END %s", why);
	tcdrain(tty);
	reboot(RB_POWER_OFF);
}

static void setup(void)
{
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/dev", 0755);
	mkdir("/mnt", 0755);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	console_open();
	read_text("/proc/sys/kernel/random/boot_id", boot_id, sizeof(boot_id));
	say("BOOT %s", boot_id);
	load_modules();
}

int main(void)
{
	struct options opt;
	pid_t recorder = -1;

	setup();
	options_read(&opt);
	if (disk_wait(opt.rec) == 0)
		recorder = start(write_records, &opt);
	if (disk_wait(opt.fs) == 0) {
		char path[48];

		snprintf(path, sizeof(path), "/dev/%s", opt.fs);
		if (mount(path, "/mnt", "ext4", MS_NOATIME, NULL) == 0)
			start(write_files, &opt);
		else
			fail(path);
	}
	start(use_network, &opt);

	struct pollfd buttons[4];
	int nbuttons = power_buttons(buttons, 4);
	for (;;) {
		int status;
		int64_t now = now_us();

		say("ALIVE %s %lld.%06lld", boot_id, (long long)(now / 1000000),
		    (long long)(now % 1000000));
		poll(buttons, nbuttons, 1000);
		for (int i = 0; i < nbuttons; i++)
			if (button_pressed(buttons[i].fd))
				power_off("button");
		for (pid_t p; (p = waitpid(-1, &status, WNOHANG)) > 0;)
			if (p == recorder && opt.count > 0)
				power_off("count");
	}
}
