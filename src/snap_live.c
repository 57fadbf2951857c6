/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The serving plugins switch to the children in two phases: every one prepares (its pointer
 * durably names the child), then every one commits. Until the first commit all can be undone. A
 * child is removed only when it is certain that no pointer names it: a server that died between
 * prepare and its answer is started again on what its pointer says.
 */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "io.h"
#include "snap.h"

static bool is_socket(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISSOCK(st.st_mode);
}

/* Both may hold '=': SOCKET is the whole, or what follows the first '=' that leaves a socket. */
int snap_add_live(struct snap_job *j, const char *arg, struct img_err *err)
{
	const char *eq = is_socket(arg) ? NULL : strchr(arg, '=');
	struct snap *s = snap_add(j);

	while (eq && !is_socket(eq + 1) && strchr(eq + 1, '='))
		eq = strchr(eq + 1, '=');
	if (!s)
		return snap_no_memory(err);
	s->socket = strdup(eq ? eq + 1 : arg);
	if (eq)
		s->disk = strndup(arg, (size_t)(eq - arg));
	return s->socket && (s->disk || !eq) ? 0 : snap_no_memory(err);
}

/* One socket must serve each. */
static int match_parents(struct snap_job *j, char *const *parents, size_t n, struct img_err *err)
{
	size_t i, k;

	if (n && n != j->n)
		return img_err_set(err, IMG_USAGE,
				   "%zu disks but %zu sockets: each disk needs its own --live", n,
				   j->n);
	for (i = 0; i < n; i++) {
		struct snap tmp;

		for (k = i; k < j->n && !io_same_file(parents[i], j->snaps[k].parent); k++)
			;
		if (k == j->n)
			return img_err_set(err, IMG_DATA, "%s: none of the sockets serves it",
					   parents[i]);
		tmp = j->snaps[i];
		j->snaps[i] = j->snaps[k];
		j->snaps[k] = tmp;
	}
	return 0;
}

int snap_find_live(struct snap_job *j, char *const *parents, size_t n, struct img_err *err)
{
	for (size_t i = 0; i < j->n; i++)
		if (snap_ask(&j->snaps[i], err) < 0)
			return -1;
	return match_parents(j, parents, n, err);
}

void snap_withdraw(struct snap *s)
{
	struct img_err err = {0};

	if (s->prepared && snap_request(s, "abort", NULL, NULL, &err) < 0)
		cli_warn("%s", err.msg);
	s->prepared = false;
	if (s->created && !s->committed && !s->keep && s->pointer &&
	    io_same_file(s->pointer, s->child))
		s->keep = true;
}

static int prepare_all(struct snap_job *j, struct img_err *err)
{
	size_t i;

	for (i = 0; i < j->n; i++) {
		struct snap *s = &j->snaps[i];
		char *real = realpath(s->child, NULL);
		int ret;

		if (!real)
			return img_err_errno(err, errno, "%s", s->child);
		ret = snap_interrupted(err);
		if (ret == 0)
			ret = snap_request(s, "prepare", real, NULL, err);
		free(real);
		if (ret < 0)
			return -1;
		s->prepared = true;
	}
	return snap_interrupted(err);
}

static int commit_one(struct snap_job *j, struct snap *s, struct img_err *err)
{
	json_t *reply = NULL, *us;

	s->prepared = false; /* whatever the answer: a failed commit has aborted */
	if (snap_request(s, "commit", NULL, &reply, err) < 0)
		return -1;
	s->committed = true;
	us = json_object_get(reply, "blocked_us");
	s->blocked_us = (uint64_t)json_integer_value(us);
	json_decref(reply);
	if (!j->common.quiet)
		fprintf(stderr, "%s: guest held off for %.2f ms\n", s->parent,
			(double)s->blocked_us / 1000);
	return 0;
}

/*
 * After the first commit there is no way back, so every other one is tried; a failure of one leaves
 * that disk on its old leaf, and the result is reported disk by disk.
 */
static int commit_all(struct snap_job *j, struct img_err *err)
{
	bool begun = false;
	size_t i;
	int ret = 0;

	for (i = 0; i < j->n; i++) {
		struct snap *s = &j->snaps[i];
		struct img_err why = {0};

		if (commit_one(j, s, &why) == 0) {
			begun = true;
			continue;
		}
		ret = img_err_set(err, why.code, "%s", why.msg);
		/* A server that died is started again on the child: that counts as a commit. */
		begun = begun || s->fd < 0;
		if (!begun)
			return ret;
		cli_warn("%s: %s", s->parent,
			 s->fd < 0 ? "its server died during the switch" : "not switched");
	}
	return ret;
}

int snap_switch(struct snap_job *j, struct img_err *err)
{
	return prepare_all(j, err) < 0 ? -1 : commit_all(j, err);
}
