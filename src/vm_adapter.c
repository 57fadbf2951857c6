/* SPDX-License-Identifier: BSD-2-Clause */
/* Calls of the program that speaks with the hypervisor, hv-NAME. */
#include <config.h>

#include "vm.h"

#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

int vm_read_all(int fd, size_t max, char **buf, size_t *len, const char *what, struct img_err *err)
{
	size_t size = 0, room = 0;
	char *p = NULL;

	for (;;) {
		ssize_t n;

		if (size + 1 >= room) {
			char *q;

			if (size > max) {
				free(p);
				return img_err_set(err, IMG_DATA, "%s: longer than %zu bytes", what,
						   max);
			}
			room = room ? room * 2 : 65536;
			q = realloc(p, room);
			if (!q) {
				free(p);
				return vm_no_memory(err);
			}
			p = q;
		}
		n = read(fd, p + size, room - size - 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			free(p);
			return img_err_errno(err, errno, "%s: cannot read", what);
		}
		if (n == 0)
			break;
		size += (size_t)n;
	}
	if (size > max) {
		free(p);
		return img_err_set(err, IMG_DATA, "%s: longer than %zu bytes", what, max);
	}
	p[size] = '\0';
	*buf = p;
	*len = size;
	return 0;
}

bool vm_hypervisor_ok(const char *hypervisor)
{
	return vm_word_ok(hypervisor, "-_", 32);
}

/* DIR/hv-H of the first folder that has it: ours, ../libexec/qsm-tools, the folders of PATH. */
static int find_adapter(const char *hypervisor, char *buf, size_t size, struct img_err *err)
{
	static const char *const below[] = {"", "/../libexec/qsm-tools"};
	const char *path = getenv("PATH");
	char self[4096];
	ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
	char *slash;

	self[n > 0 ? n : 0] = '\0';
	slash = strrchr(self, '/');
	for (size_t i = 0; slash && i < sizeof below / sizeof *below; i++) {
		snprintf(buf, size, "%.*s%s/hv-%s", (int)(slash - self), self, below[i],
			 hypervisor);
		if (access(buf, X_OK) == 0)
			return 0;
	}
	while (path && *path) {
		size_t len = strcspn(path, ":");

		snprintf(buf, size, "%.*s%shv-%s", (int)len, path, len ? "/" : "./", hypervisor);
		if (access(buf, X_OK) == 0)
			return 0;
		path += len + (path[len] == ':');
	}
	return img_err_set(err, IMG_UNAVAIL,
			   "hv-%s: no such hypervisor adapter beside this program or in PATH",
			   hypervisor);
}

static int spawn(const char *file, const char **argv, int in, int out, pid_t *pid,
		 struct img_err *err)
{
	posix_spawn_file_actions_t fa;
	int rc = posix_spawn_file_actions_init(&fa);

	if (rc)
		return img_err_errno(err, rc, "%s: cannot start", file);
	if (in >= 0)
		rc = posix_spawn_file_actions_adddup2(&fa, in, 0);
	else
		rc = posix_spawn_file_actions_addopen(&fa, 0, "/dev/null", 0, 0);
	if (!rc && out >= 0)
		rc = posix_spawn_file_actions_adddup2(&fa, out, 1);
	for (int fd = 3; !rc && fd < 10; fd++)
		if (fd == in || fd == out)
			rc = posix_spawn_file_actions_addclose(&fa, fd);
	if (!rc)
		rc = posix_spawn(pid, file, &fa, NULL, (char *const *)argv, environ);
	posix_spawn_file_actions_destroy(&fa);
	return rc ? img_err_errno(err, rc, "%s: cannot start", file) : 0;
}

static int wait_for(pid_t pid, const char *file, int *status, struct img_err *err)
{
	int ws;

	while (waitpid(pid, &ws, 0) < 0)
		if (errno != EINTR)
			return img_err_errno(err, errno, "%s: lost", file);
	if (!WIFEXITED(ws))
		return img_err_set(err, IMG_UNAVAIL, "%s: killed by signal %d", file, WTERMSIG(ws));
	*status = WEXITSTATUS(ws);
	return 0;
}

/* A nameless file, so that whatever order the adapter reads and writes in, nobody waits. */
static FILE *stdin_file(const void *in, size_t len, struct img_err *err)
{
	FILE *f = tmpfile();

	if (f && fwrite(in, 1, len, f) == len && fflush(f) == 0 && fseek(f, 0, SEEK_SET) == 0)
		return f;
	img_err_errno(err, errno, "temporary file");
	if (f)
		fclose(f);
	return NULL;
}

int vm_adapter(const char *hypervisor, const char **argv, const void *in, size_t inlen, char **out,
	       size_t *outlen, int *status, struct img_err *err)
{
	char file[4400];
	int fds[2] = {-1, -1}, ret = -1;
	FILE *f = NULL;
	pid_t pid;

	if (find_adapter(hypervisor, file, sizeof file, err) < 0)
		return -1;
	argv[0] = file;
	if (in && !(f = stdin_file(in, inlen, err)))
		return -1;
	if (out && pipe(fds) < 0) {
		img_err_errno(err, errno, "pipe");
		goto out;
	}
	if (spawn(file, argv, f ? fileno(f) : -1, fds[1], &pid, err) < 0)
		goto out;
	if (out) {
		int st;

		close(fds[1]);
		fds[1] = -1;
		*out = NULL;
		if (vm_read_all(fds[0], VM_OUTPUT_MAX, out, outlen, file, err) < 0) {
			close(fds[0]); /* it gets SIGPIPE and ends */
			fds[0] = -1;
			wait_for(pid, file, &st, err);
			goto out;
		}
	}
	ret = wait_for(pid, file, status, err);
	if (ret < 0 && out) {
		free(*out);
		*out = NULL;
	}
out:
	if (fds[0] >= 0)
		close(fds[0]);
	if (fds[1] >= 0)
		close(fds[1]);
	if (f)
		fclose(f);
	return ret;
}
