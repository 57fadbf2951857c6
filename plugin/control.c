/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The control socket: one command a line in, one JSON object a line out, any number of clients, one
 * thread. A client that says nonsense, half a line or nothing at all hurts nobody: lines and
 * clients are bounded, a command counts only with its newline, and nobody is waited for.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/prctl.h>
#endif
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "plugin.h"

#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#define MAX_CLIENTS 16
#define MAX_LINE (64u << 10) /* a path of 4096 bytes, every one of them escaped, fits */

struct client {
	int fd;
	bool eof;      /* it sends no more */
	bool drop;     /* after the pending reply */
	uint64_t used; /* when it last spoke, by a count of lines */
	size_t nin;
	size_t nout, sent;
	char *out;
	char in[MAX_LINE];
};

static struct {
	int listener, wake[2];
	bool bound, running;
	dev_t dev;
	ino_t ino;
	pthread_t thread;
	struct client *clients[MAX_CLIENTS];
	unsigned n;
	uint64_t lines;
	struct live live;
	struct client *preparer; /* whose snapshot is prepared */
} ctl = {.listener = -1, .wake = {-1, -1}};

/* JSON is UTF-8; a file name need not be. */
static json_t *json_text(const char *s)
{
	json_t *v = json_string(s);
	char *copy, *p;

	if (v || !(copy = strdup(s)))
		return v;
	for (p = copy; *p; p++)
		if (*p & 0x80)
			*p = '?';
	v = json_string(copy);
	free(copy);
	return v;
}

static json_t *status(struct disk *d)
{
	json_t *chain = json_array();
	unsigned i;

	for (i = 0; i < img_layers(d->chain); i++)
		json_array_append_new(chain, json_text(img_layer_real(d->chain, i)));
	return json_pack(
		"{s:b, s:i, s:o, s:o, s:o, s:I, s:I, s:i, s:b, s:b, s:o}", "ok", 1, "version", 1,
		"file", json_text(d->file), "leaf", json_text(img_layer_real(d->chain, 0)), "chain",
		chain, "size", (json_int_t)img_size(d->chain), "writes",
		(json_int_t)atomic_load(&d->writes), "pid", (int)getpid(), "dirty",
		atomic_load(&d->flushed) != atomic_load(&d->writes), "readonly", d->readonly,
		"prepared", ctl.live.child ? json_text(ctl.live.child) : json_null());
}

static json_t *committed(struct disk *d)
{
	return json_pack("{s:b, s:o, s:I}", "ok", 1, "leaf", json_text(img_layer_real(d->chain, 0)),
			 "blocked_us", (json_int_t)ctl.live.blocked_us);
}

static json_t *prepare(struct disk *d, struct client *c, const char *child, struct img_err *err)
{
	if (!child || !*child) {
		img_err_set(err, IMG_USAGE, "the command needs a child");
		return NULL;
	}
	if (ctl.preparer) {
		img_err_set(err, IMG_AGAIN, "%s: another snapshot is under way", d->file);
		return NULL;
	}
	if (live_prepare(d, &ctl.live, child, err) < 0)
		return NULL;
	ctl.preparer = c;
	return json_pack("{s:b, s:o}", "ok", 1, "child", json_text(ctl.live.child));
}

static json_t *commit(struct disk *d, struct client *c, struct img_err *err)
{
	if (ctl.preparer != c) {
		img_err_set(err, IMG_USAGE, "%s: no snapshot is prepared on this connection",
			    d->file);
		return NULL;
	}
	ctl.preparer = NULL;
	return live_commit(d, &ctl.live, err) < 0 ? NULL : committed(d);
}

static json_t *abort_snapshot(struct disk *d, struct client *c, struct img_err *err)
{
	if (ctl.preparer == c) {
		ctl.preparer = NULL;
		if (live_abort(d, &ctl.live, err) < 0)
			return NULL;
	}
	return json_pack("{s:b}", "ok", 1);
}

static json_t *snapshot(struct disk *d, struct client *c, const char *child, struct img_err *err)
{
	json_t *reply = prepare(d, c, child, err);

	if (!reply)
		return NULL;
	json_decref(reply);
	return commit(d, c, err);
}

/* NULL: ERR says why not. */
static json_t *execute(struct disk *d, struct client *c, const char *command, const char *child,
		       struct img_err *err)
{
	if (!strcmp(command, "status"))
		return status(d);
	if (!strcmp(command, "flush"))
		return disk_flush(d, err) < 0 ? NULL : json_pack("{s:b}", "ok", 1);
	if (!strcmp(command, "snapshot"))
		return snapshot(d, c, child, err);
	if (!strcmp(command, "prepare"))
		return prepare(d, c, child, err);
	if (!strcmp(command, "commit"))
		return commit(d, c, err);
	if (!strcmp(command, "abort"))
		return abort_snapshot(d, c, err);
	img_err_set(err, IMG_USAGE, "unknown command '%.40s'", command);
	return NULL;
}

/* The reply becomes the client's pending output; without memory the client is let go. */
static void queue_reply(struct client *c, json_t *reply, const struct img_err *err)
{
	size_t len;
	char *text;

	if (!reply) {
		reply = json_pack("{s:b, s:i, s:o}", "ok", 0, "code",
				  err->code ? err->code : IMG_BUG, "error", json_text(err->msg));
		if (reply && ctl.live.keep_child) {
			json_object_set_new(reply, "keep", json_true());
			ctl.live.keep_child = false;
		}
	}
	text = reply ? json_dumps(reply, JSON_COMPACT) : NULL;
	json_decref(reply);
	if (!text) {
		c->drop = true;
		return;
	}
	len = strlen(text);
	text[len++] = '\n'; /* in the place of the NUL: the length is kept */
	c->out = text;
	c->nout = len;
	c->sent = 0;
}

/* LINE is a JSON object, or a plain "command argument"; it is cut up. */
static void execute_line(struct disk *d, struct client *c, char *line, size_t len)
{
	const char *command = NULL, *child = NULL;
	struct img_err err = {0};
	json_t *request = NULL, *reply = NULL;
	json_error_t where;

	if (line[0] == '{') {
		request = json_loadb(line, len, JSON_REJECT_DUPLICATES, &where);
		if (!request)
			img_err_set(&err, IMG_USAGE, "not JSON: %s", where.text);
		else if (json_unpack(request, "{s:s, s?s}", "command", &command, "child", &child))
			img_err_set(&err, IMG_USAGE,
				    "not a request: {\"command\":NAME} or with \"child\":PATH");
	} else if (memchr(line, '\0', len)) {
		img_err_set(&err, IMG_USAGE, "a NUL byte in the command");
	} else {
		command = line;
		line = strchr(line, ' ');
		if (line) {
			*line++ = '\0';
			child = line;
		}
	}
	if (!err.code)
		reply = execute(d, c, command, child, &err);
	if (!reply)
		nbdkit_error("control: %s", err.msg);
	queue_reply(c, reply, &err);
	json_decref(request);
}

/* One command at a time: the next is looked at when the reply has gone out. */
static void execute_next(struct disk *d, struct client *c)
{
	char *nl;
	size_t len;

	while (!c->out && !c->drop && (nl = memchr(c->in, '\n', c->nin))) {
		len = (size_t)(nl - c->in);
		*nl = '\0';
		if (len && nl[-1] == '\r')
			*--nl = '\0';
		c->used = ++ctl.lines;
		if (nl > c->in)
			execute_line(d, c, c->in, (size_t)(nl - c->in));
		c->nin -= len + 1;
		memmove(c->in, c->in + len + 1, c->nin);
	}
	if (!c->out && !c->drop && c->nin == MAX_LINE) {
		struct img_err err = {0};

		img_err_set(&err, IMG_USAGE, "the line is longer than %u bytes", MAX_LINE - 1);
		queue_reply(c, NULL, &err);
		c->drop = true;
	}
}

static void client_close(struct disk *d, unsigned i)
{
	struct client *c = ctl.clients[i];
	struct img_err err = {0};

	if (ctl.preparer == c) {
		ctl.preparer = NULL;
		nbdkit_debug("control: connection lost, snapshot to %s aborted", ctl.live.child);
		if (live_abort(d, &ctl.live, &err) < 0)
			nbdkit_error("control: %s", err.msg);
	}
	close(c->fd);
	free(c->out);
	free(c);
	ctl.clients[i] = ctl.clients[--ctl.n];
}

/* When all places are taken, the client that has been silent longest goes. */
static void make_room(struct disk *d)
{
	unsigned i, oldest = 0;

	if (ctl.n < MAX_CLIENTS)
		return;
	if (ctl.clients[0] == ctl.preparer)
		oldest = 1;
	for (i = oldest + 1; i < ctl.n; i++)
		if (ctl.clients[i]->used < ctl.clients[oldest]->used &&
		    ctl.clients[i] != ctl.preparer)
			oldest = i;
	client_close(d, oldest);
}

static void client_accept(struct disk *d)
{
	int fd = accept4(ctl.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	struct client *c;

	if (fd < 0) {
		/* Out of files, say: it stays in the queue, and must not keep this thread busy. */
		if (errno != EAGAIN && errno != EINTR)
			nbdkit_nanosleep(0, 10000000);
		return;
	}
	c = malloc(sizeof(*c));
	if (!c) {
		close(fd);
		return;
	}
	c->fd = fd;
	c->eof = c->drop = false;
	c->used = ++ctl.lines;
	c->nin = c->nout = c->sent = 0;
	c->out = NULL;
	make_room(d);
	ctl.clients[ctl.n++] = c;
}

static void client_receive(struct client *c)
{
	ssize_t n = recv(c->fd, c->in + c->nin, MAX_LINE - c->nin, 0);

	if (n > 0)
		c->nin += (size_t)n;
	else if (n == 0 || (errno != EAGAIN && errno != EINTR))
		c->eof = true;
}

static void client_send(struct client *c)
{
	ssize_t n = send(c->fd, c->out + c->sent, c->nout - c->sent, MSG_NOSIGNAL);

	if (n < 0 && errno != EAGAIN && errno != EINTR) {
		c->drop = true; /* what it still had to say does not count: it is gone */
		c->sent = c->nout;
	} else if (n > 0) {
		c->sent += (size_t)n;
	}
	if (c->sent == c->nout) {
		free(c->out);
		c->out = NULL;
	}
}

/* False: finished with this client. */
static bool client_serve(struct disk *d, struct client *c, short revents)
{
	if (c->out && revents)
		client_send(c);
	else if (revents)
		client_receive(c);
	execute_next(d, c);
	return c->out || !(c->drop || c->eof);
}

static void *control_loop(void *arg)
{
	struct pollfd p[2 + MAX_CLIENTS];
	struct disk *d = arg;
	unsigned i;

#ifdef __linux__
	prctl(PR_SET_NAME, "vhd-control"); /* what debuggers and tests know it by */
#endif
	for (;;) {
		p[0] = (struct pollfd){.fd = ctl.wake[0], .events = POLLIN};
		p[1] = (struct pollfd){.fd = ctl.listener, .events = POLLIN};
		for (i = 0; i < ctl.n; i++)
			p[2 + i] = (struct pollfd){
				.fd = ctl.clients[i]->fd,
				.events = ctl.clients[i]->out ? POLLOUT : POLLIN,
			};
		if (poll(p, 2 + ctl.n, -1) < 0) {
			if (errno == EINTR)
				continue;
			nbdkit_error("control: poll: %s", strerror(errno));
			break;
		}
		if (p[0].revents)
			break;
		/* Downwards: closing one moves the last, which was served already, into its place.
		 */
		for (i = ctl.n; i-- > 0;)
			if (!client_serve(d, ctl.clients[i], p[2 + i].revents))
				client_close(d, i);
		if (p[1].revents)
			client_accept(d);
	}
	while (ctl.n)
		client_close(d, 0);
	return NULL;
}

/* 0: nobody answers there; 1: somebody does. */
static int answers(const struct sockaddr_un *addr, struct img_err *err)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), ret;

	if (fd < 0)
		return img_err_errno(err, errno, "%s: socket", addr->sun_path);
	ret = connect(fd, (const struct sockaddr *)addr, sizeof(*addr));
	ret = ret == 0 || errno != ECONNREFUSED;
	close(fd);
	return ret;
}

/*
 * A socket that nobody answers on is what a killed server left behind. Who looks at
 * /proc/PID/fdinfo, as lsof does, keeps it alive beyond the end of that server, for a moment:
 * looked at again, for about a tenth of a second.
 */
static int remove_stale(const struct sockaddr_un *addr, struct img_err *err)
{
	struct timespec pause = {0, 1000000};
	struct stat st;
	int ret;

	if (lstat(addr->sun_path, &st) < 0)
		return 0;
	if (!S_ISSOCK(st.st_mode))
		return img_err_set(err, IMG_CANTCREAT, "%s: exists and is no socket",
				   addr->sun_path);
	ret = answers(addr, err);
	for (; ret == 1 && pause.tv_nsec < 100000000; pause.tv_nsec *= 2) {
		nanosleep(&pause, NULL);
		ret = answers(addr, err);
	}
	if (ret < 0)
		return -1;
	if (ret)
		return img_err_set(err, IMG_AGAIN, "%s: another server listens there",
				   addr->sun_path);
	if (unlink(addr->sun_path) < 0 && errno != ENOENT)
		return img_err_errno(err, errno, "%s: unlink", addr->sun_path);
	return 0;
}

int control_bind(struct disk *d, struct img_err *err)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct stat st;

	if (strlen(d->control) >= sizeof(addr.sun_path))
		return img_err_set(err, IMG_USAGE, "%s: the name of a socket has at most %zu bytes",
				   d->control, sizeof(addr.sun_path) - 1);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", d->control);
	if (remove_stale(&addr, err) < 0)
		return -1;
	if (pipe2(ctl.wake, O_CLOEXEC) < 0)
		return img_err_errno(err, errno, "pipe");
	ctl.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (ctl.listener < 0)
		return img_err_errno(err, errno, "%s: socket", d->control);
	if (bind(ctl.listener, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return img_err_errno(err, errno, "%s: bind", d->control);
	ctl.bound = true;
	/* Nobody can connect before listen(), so the mode is never too wide. */
	if (chmod(d->control, 0600) < 0 || lstat(d->control, &st) < 0 ||
	    listen(ctl.listener, SOMAXCONN) < 0)
		return img_err_errno(err, errno, "%s", d->control);
	ctl.dev = st.st_dev;
	ctl.ino = st.st_ino;
	return 0;
}

int control_start(struct disk *d)
{
	sigset_t all, old;
	int e;

	/* Signals are nbdkit's. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	e = pthread_create(&ctl.thread, NULL, control_loop, d);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (e) {
		nbdkit_error("control: cannot start a thread: %s", strerror(e));
		return -1;
	}
	ctl.running = true;
	return 0;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void control_stop(struct disk *d)
{
	struct stat st;

	if (ctl.running && write(ctl.wake[1], "", 1) == 1)
		pthread_join(ctl.thread, NULL);
	ctl.running = false;
	close_fd(&ctl.listener);
	close_fd(&ctl.wake[0]);
	close_fd(&ctl.wake[1]);
	/* Only our own: a server started since may have put its socket there. */
	if (ctl.bound && lstat(d->control, &st) == 0 && st.st_dev == ctl.dev &&
	    st.st_ino == ctl.ino)
		unlink(d->control);
	ctl.bound = false;
}
