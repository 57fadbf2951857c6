/* SPDX-License-Identifier: BSD-2-Clause */
/* The control socket of a server of a disk: a line of JSON there, a line of JSON back. */
#include "config.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "io.h"
#include "snap.h"

#define MAX_REPLY (1u << 20)
#define REPLY_TIMEOUT 600 /* seconds; a flush of a slow disk is waited for */

static int lost(struct snap *s, struct img_err *err, const char *what)
{
	/* A prepare or commit that was not answered may have been carried out. */
	s->keep = s->created;
	close(s->fd);
	s->fd = -1;
	return img_err_set(err, IMG_UNAVAIL, "%s: the server of the disk %s", s->socket, what);
}

static int receive_line(struct snap *s, char **line, size_t *len, struct img_err *err)
{
	size_t cap = 0;
	ssize_t n;
	char *p;

	*line = NULL;
	*len = 0;
	do {
		if (*len == cap) {
			cap = cap ? 2 * cap : 4096;
			p = cap <= MAX_REPLY ? realloc(*line, cap) : NULL;
			if (!p)
				return lost(s, err, "sent too long a reply");
			*line = p;
		}
		n = recv(s->fd, *line + *len, cap - *len, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return lost(s, err, "does not answer");
		if (n <= 0)
			return lost(s, err, "closed the connection");
		*len += (size_t)n;
	} while ((*line)[*len - 1] != '\n');
	return 0;
}

static int send_all(struct snap *s, const char *buf, size_t len, struct img_err *err)
{
	ssize_t n;

	for (; len; buf += n, len -= (size_t)n) {
		n = send(s->fd, buf, len, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			n = 0;
		else if (n < 0)
			return lost(s, err, "closed the connection");
	}
	return 0;
}

int snap_request(struct snap *s, const char *command, const char *child, json_t **reply,
		 struct img_err *err)
{
	json_t *req = child ? json_pack("{s:s, s:s}", "command", command, "child", child)
			    : json_pack("{s:s}", "command", command);
	char *text = req ? json_dumps(req, JSON_COMPACT) : NULL, *line = NULL;
	const char *message = "refused, and does not say why";
	json_t *r = NULL;
	int ret = -1, ok = 0, code = IMG_IO, keep = 0;
	size_t len;

	if (!text) {
		img_err_set(err, IMG_USAGE, "%s: a live snapshot needs a name that is valid UTF-8",
			    child ? child : command);
		goto out;
	}
	if (s->fd < 0) {
		lost(s, err, "is gone");
		goto out;
	}
	len = strlen(text);
	text[len++] = '\n'; /* in the place of the NUL */
	if (send_all(s, text, len, err) < 0 || receive_line(s, &line, &len, err) < 0)
		goto out;
	r = json_loadb(line, len, 0, NULL);
	if (!r || json_unpack(r, "{s:b}", "ok", &ok)) {
		lost(s, err, "does not speak the control protocol");
	} else if (!ok) {
		json_unpack(r, "{s?i, s?s, s?b}", "code", &code, "error", &message, "keep", &keep);
		s->keep = s->keep || keep;
		img_err_set(err, code > 0 ? code : IMG_IO, "%s", message);
	} else {
		ret = 0;
		if (reply)
			*reply = json_incref(r);
	}
out:
	json_decref(r);
	json_decref(req);
	free(text);
	free(line);
	return ret;
}

static int connect_server(struct snap *s, struct img_err *err)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct timeval limit = {.tv_sec = REPLY_TIMEOUT};

	if (strlen(s->socket) >= sizeof(addr.sun_path))
		return img_err_set(err, IMG_USAGE, "%s: the name is too long for a socket",
				   s->socket);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", s->socket);
	s->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (s->fd < 0)
		return img_err_errno(err, errno, "socket");
	setsockopt(s->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(s->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	if (connect(s->fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		if (errno == EACCES || errno == EPERM)
			return img_err_errno(err, errno, "%s", s->socket);
		return img_err_set(err, IMG_UNAVAIL, "%s: nobody serves a disk there: %s",
				   s->socket, strerror(errno));
	}
	return 0;
}

int snap_ask(struct snap *s, struct img_err *err)
{
	const char *file = NULL, *leaf = NULL;
	json_t *reply = NULL;
	int ret = -1;

	if (connect_server(s, err) < 0 || snap_request(s, "status", NULL, &reply, err) < 0)
		return -1;
	if (json_unpack(reply, "{s:s, s:s}", "file", &file, "leaf", &leaf)) {
		lost(s, err, "does not say what it serves");
		goto out;
	}
	if (s->disk && !io_same_file(s->disk, leaf) && strcmp(s->disk, io_basename(file)) != 0) {
		img_err_set(err, IMG_DATA, "%s: serves %s as %s, not %s", s->socket, leaf, file,
			    s->disk);
		goto out;
	}
	s->parent = strdup(leaf);
	s->pointer = strdup(file);
	ret = s->parent && s->pointer ? 0 : snap_no_memory(err);
out:
	json_decref(reply);
	return ret;
}
