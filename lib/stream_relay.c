/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What the reader of a stream has verified, on its way to the visitor. A visitor that allows it
 * is called from a thread of its own: while that writes to the file, or waits for the disk, the
 * next records are read and verified. Batches are handed over, not single records: with small
 * ones a hand-over would cost more than the record.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "stream_impl.h"

enum {
	RING = 3,		 /* batches: what is lost with the receiver is sent again */
	ROOM = 4 * STREAM_PIECE, /* as much goes to the disk at once */
	EVENTS = 512,
};

enum kind { DATA, ZERO, CHUNKS };

struct event {
	enum kind kind;
	uint64_t off, len; /* CHUNKS: the first and how many */
	const uint8_t *buf;
	uint8_t sum[IMG_SUM_BYTES];
};

struct batch {
	uint8_t *buf;
	size_t cap, used;
	unsigned n;
	struct event event[EVENTS];
	struct event *data; /* may grow: behind it are only sums */
	bool marked;	    /* behind the events */
	struct stream_mark mark;
};

struct stream_relay {
	const struct stream_visitor *v;
	struct batch ring[RING]; /* the one with number I is ring[I % RING] */
	uint64_t filled, visited;
	pthread_mutex_t mutex;
	pthread_cond_t change;
	pthread_t thread;
	bool apart, quit;
	bool failed; /* and nothing is visited any more */
	struct img_err err;
};

static int visit_event(const struct stream_visitor *v, const struct event *e, struct img_err *err)
{
	switch (e->kind) {
	case DATA:
		return v->data(v->ctx, e->off, e->buf, (size_t)e->len, err);
	case ZERO:
		return v->zero(v->ctx, e->off, e->len, err);
	case CHUNKS:
		v->chunks(v->ctx, e->off, e->len, e->sum);
	}
	return 0;
}

static int visit(const struct stream_visitor *v, const struct batch *b, struct img_err *err)
{
	for (unsigned i = 0; i < b->n; i++)
		if (visit_event(v, &b->event[i], err))
			return -1;
	return b->marked ? v->mark(v->ctx, &b->mark, err) : 0;
}

static void reset(struct batch *b)
{
	/* One that had to hold more than usual gives it back. */
	if (b->cap > ROOM) {
		free(b->buf);
		b->buf = NULL;
		b->cap = 0;
	}
	b->used = b->n = 0;
	b->data = NULL;
	b->marked = false;
}

static void *serve(void *arg)
{
	struct stream_relay *r = arg;

	pthread_mutex_lock(&r->mutex);
	for (;;) {
		struct batch *b = &r->ring[r->visited % RING];
		bool bad;

		while (!r->quit && r->visited == r->filled)
			pthread_cond_wait(&r->change, &r->mutex);
		if (r->visited == r->filled)
			break;
		bad = r->failed;
		pthread_mutex_unlock(&r->mutex);
		bad = bad || visit(r->v, b, &r->err);
		reset(b);
		pthread_mutex_lock(&r->mutex);
		r->failed = bad;
		r->visited++;
		pthread_cond_broadcast(&r->change);
	}
	pthread_mutex_unlock(&r->mutex);
	return NULL;
}

struct stream_relay *stream_relay_new(const struct stream_visitor *v)
{
	struct stream_relay *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	r->v = v;
	pthread_mutex_init(&r->mutex, NULL);
	pthread_cond_init(&r->change, NULL);
	/* Where there can be no thread, it goes without. */
	r->apart = v->apart && pthread_create(&r->thread, NULL, serve, r) == 0;
	return r;
}

bool stream_relay_failed(struct stream_relay *r)
{
	bool failed;

	pthread_mutex_lock(&r->mutex);
	failed = r->failed;
	pthread_mutex_unlock(&r->mutex);
	return failed;
}

static int hand_over(struct stream_relay *r, struct img_err *err)
{
	struct batch *b = &r->ring[r->filled % RING];

	if (!b->n && !b->marked)
		return 0;
	pthread_mutex_lock(&r->mutex);
	r->filled++;
	pthread_cond_broadcast(&r->change);
	while (r->apart && r->filled - r->visited == RING)
		pthread_cond_wait(&r->change, &r->mutex);
	pthread_mutex_unlock(&r->mutex);
	if (!r->apart) {
		r->failed = r->failed || visit(r->v, b, &r->err);
		reset(b);
		r->visited++;
	}
	return stream_relay_failed(r) ? img_err_set(err, IMG_AGAIN, "the visitor failed") : 0;
}

static int wait_visited(struct stream_relay *r, struct img_err *err)
{
	int rc = hand_over(r, err);

	pthread_mutex_lock(&r->mutex);
	while (r->visited != r->filled)
		pthread_cond_wait(&r->change, &r->mutex);
	rc = r->failed ? -1 : rc;
	pthread_mutex_unlock(&r->mutex);
	return rc;
}

int stream_relay_step(struct stream_relay *r, struct img_err *err)
{
	return r->apart ? 0 : hand_over(r, err);
}

int stream_relay_end(struct stream_relay *r, int rc, struct img_err *err)
{
	struct img_err ignored = {0};

	if (wait_visited(r, &ignored)) {
		/* What failed there came before what the reader has met since. */
		img_err_clear(err);
		rc = img_err_set(err, r->err.code, "%s", r->err.msg);
	}
	return rc;
}

void stream_relay_free(struct stream_relay *r)
{
	if (!r)
		return;
	pthread_mutex_lock(&r->mutex);
	r->quit = true;
	pthread_cond_broadcast(&r->change);
	pthread_mutex_unlock(&r->mutex);
	if (r->apart)
		pthread_join(r->thread, NULL);
	for (unsigned i = 0; i < RING; i++)
		free(r->ring[i].buf);
	pthread_mutex_destroy(&r->mutex);
	pthread_cond_destroy(&r->change);
	free(r);
}

/* The batch that is being filled, with room for N more events. */
static struct batch *room(struct stream_relay *r, unsigned n, struct img_err *err)
{
	if (r->ring[r->filled % RING].n + n > EVENTS && hand_over(r, err))
		return NULL;
	return &r->ring[r->filled % RING];
}

static int resize(struct batch *b, size_t len, struct img_err *err)
{
	void *buf = NULL;

	/* Untouched pages cost nothing. */
	if (posix_memalign(&buf, 4096, len))
		return img_err_errno(err, ENOMEM, "stream");
	free(b->buf);
	b->buf = buf;
	b->cap = len;
	return 0;
}

int stream_relay_room(struct stream_relay *r, size_t len, uint8_t **buf, struct img_err *err)
{
	/* What belongs together stays together: the sums of the chunks, and the data itself. */
	struct batch *b = room(r, (unsigned)(len / IMG_SUM_CHUNK) + 3, err);

	if (b && b->used && b->used + len > b->cap)
		b = hand_over(r, err) ? NULL : room(r, 0, err);
	/* Of the very large there is one at a time. */
	if (b && len > ROOM)
		b = wait_visited(r, err) ? NULL : room(r, 0, err);
	if (!b || (b->used + len > b->cap && resize(b, len > ROOM ? len : ROOM, err)))
		return -1;
	*buf = b->buf + b->used;
	return 0;
}

static int add(struct stream_relay *r, const struct event *e, struct img_err *err)
{
	struct batch *b = room(r, 1, err);

	if (!b)
		return -1;
	if (e->kind != CHUNKS)
		b->data = e->kind == DATA ? &b->event[b->n] : NULL;
	b->event[b->n++] = *e;
	return 0;
}

int stream_relay_data(struct stream_relay *r, uint64_t off, const uint8_t *buf, size_t len,
		      struct img_err *err)
{
	struct event e = {.kind = DATA, .off = off, .len = len, .buf = buf};
	struct batch *b = &r->ring[r->filled % RING];

	b->used += len;
	/* Fewer and larger writes. */
	if (b->data && b->data->off + b->data->len == off && b->data->buf + b->data->len == buf) {
		b->data->len += len;
		return 0;
	}
	return add(r, &e, err);
}

int stream_relay_zero(struct stream_relay *r, uint64_t off, uint64_t len, struct img_err *err)
{
	struct event e = {.kind = ZERO, .off = off, .len = len};

	return add(r, &e, err);
}

void stream_relay_chunks(struct stream_relay *r, uint64_t first, uint64_t n,
			 const uint8_t sum[IMG_SUM_BYTES])
{
	struct event e = {.kind = CHUNKS, .off = first, .len = n};
	struct batch *b = &r->ring[r->filled % RING];
	struct event *last = b->n ? &b->event[b->n - 1] : NULL;
	struct img_err later = {0}; /* a failure stays, and is met again */

	if (!r->v->chunks)
		return;
	/* Of zeros there may be millions. */
	if (last && last->kind == CHUNKS && first == last->off + last->len &&
	    memcmp(last->sum, sum, IMG_SUM_BYTES) == 0) {
		last->len += n;
		return;
	}
	memcpy(e.sum, sum, IMG_SUM_BYTES);
	(void)add(r, &e, &later);
}

int stream_relay_mark(struct stream_relay *r, const struct stream_mark *mark, struct img_err *err)
{
	struct batch *b;

	if (!r->v->mark)
		return 0;
	b = &r->ring[r->filled % RING];
	b->mark = *mark;
	b->marked = true;
	return hand_over(r, err);
}
