/* SPDX-License-Identifier: BSD-2-Clause */
/* Old bytes beside a file: saved, put back, refused when they are not to be trusted. */
#include "config.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io.h"
#include "undo.h"

#define LEN (3u << 20)

static int count, failed;
static char dir[64];
static uint8_t old[LEN];

static void ok(bool good, const char *what)
{
	printf("%s %d %s\n", good ? "ok" : "not ok", ++count, what);
	failed |= !good;
}

static bool there(const char *name)
{
	struct stat st;

	return lstat(name, &st) == 0;
}

/* A fresh file "disk": data, a hole, data. */
static void fresh(struct io_file *f)
{
	struct img_err err = {0};
	int fd;

	if (system("rm -rf -- * .*.tmp") != 0)
		exit(1);
	fd = open("disk", O_RDWR | O_CREAT, 0644);
	for (size_t i = 0; i < LEN; i++)
		old[i] = i >= (1 << 20) && i < (2 << 20) ? 0 : (uint8_t)(i * 2654435761u >> 13);
	if (fd < 0 || pwrite(fd, old, 1 << 20, 0) < 0 ||
	    pwrite(fd, old + (2 << 20), 1 << 20, 2 << 20) < 0)
		exit(1);
	close(fd);
	if (io_open(f, "disk", true, &err) < 0)
		exit(1);
}

static bool is_old(struct io_file *f)
{
	static uint8_t now[LEN + 1];
	uint64_t size;

	return io_size(f, &size, NULL) == 0 && size == LEN && io_read(f, now, LEN, 0, NULL) == 0 &&
	       memcmp(now, old, LEN) == 0;
}

static const struct undo_range ranges[] = {{10, 5}, {900 << 10, 2 << 20}, {LEN - 7, 100}};

/* Saves, then changes bytes everywhere in the ranges and the length. */
static bool change(struct io_file *f, enum undo_kind kind, uint64_t length)
{
	static uint8_t junk[2 << 20];

	memset(junk, 0x5a, sizeof(junk));
	return undo_store(f, kind, ranges, 3, NULL) == 0 && io_write(f, junk, 5, 10, NULL) == 0 &&
	       io_write(f, junk, sizeof(junk), 900 << 10, NULL) == 0 &&
	       io_write(f, junk, 7, LEN - 7, NULL) == 0 && io_truncate(f, length, NULL) == 0 &&
	       io_sync(f, NULL) == 0;
}

static void test_rollback(void)
{
	struct io_file f;
	bool yes;

	fresh(&f);
	ok(change(&f, UNDO_ROLLBACK, LEN + 5000) && !is_old(&f), "changed, and longer");
	ok(undo_pending(f.real, &yes, NULL) == 0 && yes, "it is pending");
	ok(undo_store(&f, UNDO_ROLLBACK, ranges, 1, NULL) < 0, "no second change meanwhile");
	ok(undo_apply(&f, NULL) == 0 && is_old(&f) && !there("disk.rollback"), "put back");
	ok(undo_apply(&f, NULL) == 0 && is_old(&f), "nothing to put back");
	ok(change(&f, UNDO_ROLLBACK, LEN - 7) && undo_apply(&f, NULL) == 0 && is_old(&f),
	   "a shorter file");
	ok(change(&f, UNDO_ROLLBACK, LEN) && undo_finish(&f, NULL) == 0 &&
		   !there("disk.rollback") && !is_old(&f),
	   "finished: forgotten");
	io_close(&f);
}

static void test_keep(void)
{
	struct io_file f;
	uint8_t byte = 1;

	fresh(&f);
	ok(change(&f, UNDO_KEEP, LEN - 7) && undo_finish(&f, NULL) == 0 && there("disk.undo") &&
		   !there("disk.rollback"),
	   "kept");
	ok(undo_revert(&f, false, NULL) == 0 && is_old(&f) && !there("disk.undo"), "taken back");
	ok(undo_revert(&f, false, NULL) < 0 && is_old(&f), "only once");
	ok(change(&f, UNDO_KEEP, LEN + 1) && undo_finish(&f, NULL) == 0 &&
		   undo_store(&f, UNDO_KEEP, ranges, 1, NULL) == 0 &&
		   io_write(&f, &byte, 1, 12, NULL) == 0 && undo_finish(&f, NULL) == 0 &&
		   there("disk.undo.2"),
	   "a second one beside the first");
	ok(undo_revert(&f, false, NULL) == 0 && !is_old(&f) && undo_revert(&f, false, NULL) == 0 &&
		   is_old(&f),
	   "taken back one after the other");
	ok(change(&f, UNDO_KEEP, LEN) && undo_finish(&f, NULL) == 0 &&
		   io_write(&f, &byte, 1, 12, NULL) == 0 && undo_revert(&f, false, NULL) < 0 &&
		   there("disk.undo"),
	   "not over later changes");
	ok(undo_revert(&f, true, NULL) == 0 && is_old(&f), "unless forced");
	ok(change(&f, UNDO_KEEP, LEN) && undo_apply(&f, NULL) == 0 && is_old(&f) &&
		   !there("disk.undo"),
	   "an unfinished one is a rollback");
	io_close(&f);
}

/* After a crash the old name may be back: what has ended is not undone. */
static void test_ended(void)
{
	struct io_file f;
	bool yes;

	fresh(&f);
	ok(change(&f, UNDO_KEEP, LEN) && undo_finish(&f, NULL) == 0 &&
		   system("mv disk.undo disk.rollback") == 0 &&
		   undo_pending(f.real, &yes, NULL) == 0 && !yes && undo_apply(&f, NULL) == 0 &&
		   !is_old(&f) && there("disk.undo") && !there("disk.rollback"),
	   "a kept one goes to its name");
	ok(undo_revert(&f, false, NULL) == 0 && is_old(&f), "from where it can be taken back");
	ok(undo_store(&f, UNDO_ROLLBACK, ranges, 3, NULL) == 0 &&
		   system("cp -p disk.rollback x") == 0 && undo_finish(&f, NULL) == 0 &&
		   system("printf qsm-void | dd of=x conv=notrunc 2>/dev/null; mv x disk.rollback") ==
			   0 &&
		   undo_pending(f.real, &yes, NULL) == 0 && !yes &&
		   change(&f, UNDO_ROLLBACK, LEN) && undo_apply(&f, NULL) == 0 && is_old(&f),
	   "a void one is no obstacle");
	io_close(&f);
}

/* After SPOIL, a shell command, nothing is put back and nothing else is changed. */
static void refused(const char *spoil, const char *what)
{
	struct img_err err = {0};
	struct io_file f;
	struct stat a, b;

	fresh(&f);
	if (!change(&f, UNDO_ROLLBACK, LEN + 5000) || system(spoil) != 0)
		exit(1);
	stat("disk", &a);
	ok(undo_apply(&f, &err) < 0 && !is_old(&f) && stat("disk", &b) == 0 &&
		   a.st_mtim.tv_nsec == b.st_mtim.tv_nsec && a.st_mtim.tv_sec == b.st_mtim.tv_sec,
	   what);
	printf("# %s\n", err.msg);
	io_close(&f);
}

int main(void)
{
	snprintf(dir, sizeof(dir), "%s", "/tmp/qsm-undo.XXXXXX");
	if (!mkdtemp(dir) || chdir(dir) < 0)
		return 1;
	test_rollback();
	test_keep();
	test_ended();
	refused("printf x | dd of=disk.rollback bs=1 seek=200000 conv=notrunc 2>/dev/null",
		"a wrong bit");
	refused("truncate -s -1 disk.rollback", "cut at the end");
	refused("truncate -s 30 disk.rollback", "cut in the head");
	refused("mv disk.rollback x && ln -s x disk.rollback", "a symbolic link");
	refused("rm disk.rollback && mkfifo disk.rollback", "a FIFO");
	refused("chmod 622 disk.rollback", "writable to others");
	refused("cp disk disk2 && mv disk.rollback x && cp x disk.rollback && "
		"printf '\\377' | dd of=disk.rollback bs=1 seek=20 conv=notrunc 2>/dev/null",
		"of another inode");
	if (geteuid() == 0)
		refused("chown 4321 disk.rollback", "of another user");
	printf("1..%d\n", count);
	if (chdir("/") == 0 && strncmp(dir, "/tmp/qsm-undo.", 14) == 0) {
		char cmd[100];

		snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
		failed |= system(cmd) != 0;
	}
	return failed;
}
