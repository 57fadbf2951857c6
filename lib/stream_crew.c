/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Compression beside the reading of the disk and the writing into the pipe: batches of pieces go
 * round in a ring. The writer fills one, any thread of the crew compresses it, the writer takes
 * it in the order in which it was filled. What a batch becomes depends on nothing but its pieces,
 * so the stream does not depend on the number of threads.
 */
#include "config.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "stream_impl.h"

enum {
	AHEAD = 4,		/* batches more than there are threads */
	BATCH_DATA = 256 << 10, /* enough to be worth a hand-over */
	BATCH_ROOM = BATCH_DATA + STREAM_PIECE,
	MAX_THREADS = 8,
	MEMORY = 46 << 20, /* for batches and codecs */
};

struct worker {
	struct stream_crew *crew;
	struct stream_codec *codec;
	pthread_t thread;
};

struct stream_crew {
	struct stream_batch *ring;
	unsigned n; /* batches; the one with number I is ring[I % n] */
	uint64_t filled, taken, emptied;
	pthread_mutex_t mutex;
	pthread_cond_t work, done;
	bool quit;
	struct worker worker[MAX_THREADS];
	unsigned workers, threads; /* with a codec; running: none where the caller does it all */
};

/* The end of the run from FROM on whose units are all zero or all not. */
static size_t same_until(const struct stream_run *r, size_t from, bool *zero)
{
	size_t end = from;

	while (end < r->len) {
		uint64_t in_unit = (r->off + end) % STREAM_ZERO_UNIT;
		size_t n = (size_t)u64_min(r->len - end, STREAM_ZERO_UNIT - in_unit);
		bool z = bytes_are_zero(r->data + end, n);

		if (end == from)
			*zero = z;
		else if (z != *zero)
			break;
		end += n;
	}
	return end;
}

struct stream_run stream_run_first(struct stream_run *rest)
{
	struct stream_run r = *rest;
	bool zero = false;
	size_t n = r.data ? same_until(rest, 0, &zero) : 0;

	if (r.data)
		r.len = n;
	if (zero)
		r.data = NULL;
	rest->off += r.len;
	rest->len -= r.len;
	rest->data = rest->data ? rest->data + r.len : NULL;
	return r;
}

/* Pieces become runs, of zeros or of data that is compressed where it pays. */
static void pack(struct stream_batch *b, struct stream_codec *codec)
{
	size_t at = 0;

	b->nruns = 0;
	for (unsigned i = 0; i < b->npieces; i++) {
		struct stream_run rest = b->pieces[i];

		while (rest.len) {
			struct stream_run *r = &b->runs[b->nruns++];

			*r = stream_run_first(&rest);
			if (!r->data)
				continue;
			r->packed = b->packed + at;
			r->stored = stream_pack(codec, r->data, (size_t)r->len, b->packed + at,
						&b->failed);
			at += r->stored;
		}
	}
}

static void *serve(void *arg)
{
	struct worker *me = arg;
	struct stream_crew *c = me->crew;

	pthread_mutex_lock(&c->mutex);
	for (;;) {
		struct stream_batch *b;

		while (!c->quit && c->taken == c->filled)
			pthread_cond_wait(&c->work, &c->mutex);
		if (c->quit)
			break;
		b = &c->ring[c->taken++ % c->n];
		pthread_mutex_unlock(&c->mutex);
		pack(b, me->codec);
		pthread_mutex_lock(&c->mutex);
		b->done = true;
		pthread_cond_signal(&c->done);
	}
	pthread_mutex_unlock(&c->mutex);
	return NULL;
}

void stream_crew_free(struct stream_crew *c)
{
	if (!c)
		return;
	pthread_mutex_lock(&c->mutex);
	c->quit = true;
	pthread_cond_broadcast(&c->work);
	pthread_mutex_unlock(&c->mutex);
	for (unsigned i = 0; i < c->threads; i++)
		pthread_join(c->worker[i].thread, NULL);
	for (unsigned i = 0; i < c->workers; i++)
		stream_codec_free(c->worker[i].codec);
	for (unsigned i = 0; c->ring && i < c->n; i++) {
		free(c->ring[i].raw);
		free(c->ring[i].packed);
	}
	free(c->ring);
	pthread_mutex_destroy(&c->mutex);
	pthread_cond_destroy(&c->work);
	pthread_cond_destroy(&c->done);
	free(c);
}

static int make_ring(struct stream_crew *c, unsigned n, struct img_err *err)
{
	void *raw, *packed;

	c->ring = calloc(n, sizeof(*c->ring));
	for (c->n = 0; c->ring && c->n < n; c->n++) {
		raw = packed = NULL;
		if (posix_memalign(&raw, 4096, BATCH_ROOM) ||
		    posix_memalign(&packed, 4096, BATCH_ROOM)) {
			free(raw);
			return img_err_errno(err, ENOMEM, "compression");
		}
		c->ring[c->n].raw = raw;
		c->ring[c->n].packed = packed;
	}
	return c->ring ? 0 : img_err_errno(err, ENOMEM, "compression");
}

static unsigned choose(unsigned threads, int level)
{
	size_t each = stream_codec_memory(level) + 2 * BATCH_ROOM;

	threads = threads < MAX_THREADS ? threads : MAX_THREADS;
	threads = threads * each <= MEMORY ? threads : (unsigned)(MEMORY / each);
	return threads ? threads : 1;
}

struct stream_crew *stream_crew_new(int level, unsigned threads, struct img_err *err)
{
	struct stream_crew *c = calloc(1, sizeof(*c));

	threads = choose(threads, level);
	if (!c) {
		img_err_errno(err, ENOMEM, "compression");
		return NULL;
	}
	pthread_mutex_init(&c->mutex, NULL);
	pthread_cond_init(&c->work, NULL);
	pthread_cond_init(&c->done, NULL);
	for (; c->workers < threads; c->workers++) {
		struct worker *w = &c->worker[c->workers];

		w->crew = c;
		w->codec = stream_codec_new(level, err);
		if (!w->codec)
			goto fail;
	}
	if (make_ring(c, threads > 1 ? threads + AHEAD : 1, err))
		goto fail;
	/* With fewer than asked for it takes longer, with none the caller does it. */
	while (threads > 1 && c->threads < threads &&
	       pthread_create(&c->worker[c->threads].thread, NULL, serve, &c->worker[c->threads]) ==
		       0)
		c->threads++;
	return c;
fail:
	stream_crew_free(c);
	return NULL;
}

struct stream_batch *stream_crew_room(struct stream_crew *c)
{
	return c->filled - c->emptied < c->n ? &c->ring[c->filled % c->n] : NULL;
}

bool stream_batch_full(const struct stream_batch *b)
{
	return b->used >= BATCH_DATA || b->npieces == STREAM_BATCH_PIECES;
}

void stream_crew_fill(struct stream_crew *c)
{
	struct stream_batch *b = &c->ring[c->filled % c->n];

	b->done = b->failed = false;
	if (!c->threads) {
		c->filled++;
		pack(b, c->worker[0].codec);
		b->done = true;
		return;
	}
	pthread_mutex_lock(&c->mutex);
	c->filled++;
	pthread_cond_signal(&c->work);
	pthread_mutex_unlock(&c->mutex);
}

struct stream_batch *stream_crew_next(struct stream_crew *c, bool wait)
{
	struct stream_batch *b = &c->ring[c->emptied % c->n];
	bool done;

	if (c->emptied == c->filled)
		return NULL;
	pthread_mutex_lock(&c->mutex);
	while (wait && !b->done)
		pthread_cond_wait(&c->done, &c->mutex);
	done = b->done;
	pthread_mutex_unlock(&c->mutex);
	return done ? b : NULL;
}

void stream_crew_empty(struct stream_crew *c)
{
	struct stream_batch *b = &c->ring[c->emptied++ % c->n];

	b->npieces = b->nruns = 0;
	b->used = 0;
}
