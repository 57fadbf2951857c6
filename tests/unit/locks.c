/* SPDX-License-Identifier: BSD-2-Clause */
/* Locks of image files: what counts as a conflict, and that it ends with the descriptor that held
 * it. */
#include "config.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "io.h"

static int count, failed;
static char file[] = "/tmp/qsm-locks.XXXXXX";

static void ok(bool good, const char *what)
{
	printf("%s %d %s\n", good ? "ok" : "not ok", ++count, what);
	failed |= !good;
}

static bool lock_once(enum io_lock lock, struct img_err *err)
{
	struct io_file f;
	bool good;

	io_init(&f);
	good = io_open(&f, file, true, err) == 0 && io_lock(&f, lock, err) == 0;
	io_close(&f);
	return good;
}

/* The file is open for 10 ms longer than its owner had it, as when lsof looks at it just then. */
static bool free_after_close(struct img_err *err)
{
	const struct timespec moment = {0, 10000000};
	struct io_file f;
	bool good;
	pid_t pid;

	io_init(&f);
	if (io_open(&f, file, true, err) < 0 || io_lock(&f, IO_LOCK_EXCLUSIVE, err) < 0)
		exit(1);
	pid = fork();
	if (pid == 0) {
		nanosleep(&moment, NULL);
		_exit(0);
	}
	if (pid < 0)
		exit(1);
	io_close(&f);
	good = lock_once(IO_LOCK_EXCLUSIVE, err);
	waitpid(pid, NULL, 0);
	return good;
}

/* A busy machine may wake the other one late: not each time. */
static void test_moment(void)
{
	struct img_err err = {0};
	bool good = false;

	for (int i = 0; i < 20 && !good; i++) {
		img_err_clear(&err);
		good = free_after_close(&err);
	}
	if (!good)
		printf("# %s\n", err.msg);
	ok(good, "what holds for a moment is no conflict");
}

static void test_modes(void)
{
	struct img_err err = {0};
	struct io_file f;

	io_init(&f);
	if (io_open(&f, file, true, &err) < 0)
		exit(1);
	ok(io_lock(&f, IO_LOCK_SHARED, &err) == 0 && lock_once(IO_LOCK_SHARED, &err),
	   "two readers");
	ok(!lock_once(IO_LOCK_EXCLUSIVE, &err) && err.code == IMG_AGAIN,
	   "no writer beside a reader");
	img_err_clear(&err);
	ok(io_lock(&f, IO_LOCK_EXCLUSIVE, &err) == 0 && !lock_once(IO_LOCK_SHARED, &err) &&
		   err.code == IMG_AGAIN,
	   "no reader beside a writer");
	img_err_clear(&err);
	ok(io_lock(&f, IO_UNLOCKED, &err) == 0 && lock_once(IO_LOCK_EXCLUSIVE, &err), "given up");
	io_close(&f);
}

int main(void)
{
	int fd = mkstemp(file);

	if (fd < 0)
		return 1;
	close(fd);
	test_modes();
	test_moment();
	printf("1..%d\n", count);
	return unlink(file) < 0 || failed;
}
