/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Pipes and sockets: what a stream goes through. Nothing here seeks. Waits are short, so that a
 * signal ends them although the other side hangs.
 */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bytes.h"
#include "stream_impl.h"

enum { PIPE_BYTES = 1 << 20, WAIT_MS = 200 };

#define NSEC 1000000000ull

/* Fewer, larger turns of the two sides; a refusal (limits, not a pipe) does no harm. */
void stream_pipe_tune(const struct stream_pipe *p)
{
#ifdef F_SETPIPE_SZ
	if (p->fd >= 0)
		(void)fcntl(p->fd, F_SETPIPE_SZ, PIPE_BYTES);
#else
	(void)p;
#endif
}

static int stopped(const struct stream_pipe *p, struct img_err *err)
{
	if (p->stop && p->stop())
		return img_err_set(err, IMG_AGAIN, "%s: interrupted", p->name);
	if (p->relay && stream_relay_failed(p->relay))
		return img_err_set(err, IMG_AGAIN, "%s: not needed any more", p->name);
	return 0;
}

/* Until EVENTS, or a reason to look again. */
static int wait_for(const struct stream_pipe *p, short events, struct img_err *err)
{
	struct pollfd pfd = {.fd = p->fd, .events = events};

	for (;;) {
		int n;

		if (stopped(p, err))
			return -1;
		n = poll(&pfd, 1, WAIT_MS);
		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return img_err_errno(err, errno, "%s: poll", p->name);
	}
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NSEC + (uint64_t)ts.tv_nsec;
}

/* How much may go at once: a twentieth of a second's worth keeps the flow even. */
static size_t quantum(const struct stream_pipe *p)
{
	return p->rate ? (size_t)u64_max(512, u64_min(p->rate / 20, PIPE_BYTES)) : SIZE_MAX;
}

/* The token bucket: waits until LEN bytes may go. */
static int pace(struct stream_pipe *p, size_t len, struct img_err *err)
{
	uint64_t now = now_ns();

	if (!p->ready)
		p->ready = now;
	while (now < p->ready && (!p->live_rate || *p->live_rate == p->rate)) {
		uint64_t left = u64_min(p->ready - now, WAIT_MS * 1000000ull);
		struct timespec ts = {(time_t)(left / NSEC), (long)(left % NSEC)};

		if (stopped(p, err))
			return -1;
		nanosleep(&ts, NULL);
		now = now_ns();
	}
	if (p->live_rate && *p->live_rate != p->rate) {
		p->rate = *p->live_rate;
		p->ready = now;
		if (!p->rate)
			return 0;
	}
	/* Time that was lost waiting for the reader is made good up to 100 ms. */
	p->ready = u64_max(p->ready, now > NSEC / 10 ? now - NSEC / 10 : 0) + len * NSEC / p->rate;
	return 0;
}

static int write_failed(const struct stream_pipe *p, int errnum, struct img_err *err)
{
	if (errnum == EPIPE || errnum == ECONNRESET)
		return img_err_set(
			err, IMG_UNAVAIL,
			"%s: the reader went away before the end of the stream; "
			"its own message says why; the same command with --resume=\"$(vhd-recv --token FILE)\" goes on",
			p->name);
	return img_err_errno(err, errnum, "%s: write", p->name);
}

/* Takes N bytes off the front of *IOV. */
static void iov_advance(struct iovec **iov, int *count, size_t n)
{
	while (*count && n >= (*iov)->iov_len) {
		n -= (*iov)->iov_len;
		(*iov)++;
		(*count)--;
	}
	if (n) {
		(*iov)->iov_base = (uint8_t *)(*iov)->iov_base + n;
		(*iov)->iov_len -= n;
	}
}

int stream_pipe_write(struct stream_pipe *p, struct iovec *iov, int n, struct img_err *err)
{
	iov_advance(&iov, &n, 0);
	while (n) {
		struct iovec head = *iov;
		ssize_t put;

		if (p->live_rate && !p->rate)
			p->rate = *p->live_rate;
		if (head.iov_len > quantum(p))
			head.iov_len = quantum(p);
		if (stopped(p, err) || (p->rate && pace(p, head.iov_len, err)))
			return -1;
		put = p->rate ? writev(p->fd, &head, 1)
			      : writev(p->fd, iov, n < IOV_MAX ? n : IOV_MAX);
		if (put >= 0)
			iov_advance(&iov, &n, (size_t)put);
		else if (errno == EAGAIN && wait_for(p, POLLOUT, err))
			return -1;
		else if (errno != EINTR && errno != EAGAIN)
			return write_failed(p, errno, err);
	}
	return 0;
}

int stream_pipe_read(struct stream_pipe *p, void *buf, size_t min, size_t max, size_t *got,
		     struct img_err *err)
{
	*got = 0;
	while (*got < min) {
		ssize_t n;

		if (wait_for(p, POLLIN, err))
			return -1;
		n = read(p->fd, (uint8_t *)buf + *got, max - *got);
		if (n == 0)
			break;
		if (n > 0)
			*got += (size_t)n;
		else if (errno != EINTR && errno != EAGAIN)
			return img_err_errno(err, errno, "%s: read", p->name);
	}
	return 0;
}
