/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Sums of chunks that are kept beside a disk, as FILE.sums, so that nobody needs to read again what
 * was read once. They are good as long as nothing was written to the file or to its parents, and
 * that must be seen without reading:
 *
 *  - They hold the identity of all files: inode, size, both times. Writing changes the times, but
 *    only when the clock of the file system has moved on. So it is taken when the clock is beyond
 *    them: whatever is written from then on gets a later time.
 *  - After power loss a file may have its old times and newer content, since the times are not
 *    written with the data. So sums are of one run of the system only.
 *  - Nobody writes while they are compared and used: the locks of the chain are held.
 *
 * Our own writers also remove them, durably, before they write. A chunk whose sum is not kept is
 * unknown, no more. What a layer above has touched of it is unknown in the chain from there on.
 */
#include "config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "sums.h"

/* Below it are more sums than anybody needs: a merge leaves all in one file. */
enum { MOST_FILES = 8 };

/* --- kept --------------------------------------------------------------------------------- */

struct img_sums {
	struct sums_out out;
	uint64_t size;
	uint64_t next; /* chunk behind the last one that was added */
	bool frozen;   /* HEAD says what the sums are of */
	struct sums_head head;
	bool expected; /* the file that they are of will be this one */
	struct stat expect;
};

static struct img_sums *sums_new(const char *beside, uint64_t size)
{
	struct img_sums *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->size = size;
	if (sums_out_open(&s->out, beside) == 0)
		return s;
	img_sums_drop(s);
	return NULL;
}

void img_sums_drop(struct img_sums *s)
{
	if (!s)
		return;
	sums_out_close(&s->out);
	free(s);
}

void img_sums_add(void *ctx, uint64_t first, uint64_t n, const uint8_t sum[IMG_SUM_BYTES])
{
	struct img_sums *s = ctx;

	if (!s)
		return;
	sums_out_add(&s->out, first, n, sum);
	s->next = first + n;
}

static uint64_t file_bytes(const struct img_chain *c, unsigned from)
{
	uint64_t bytes = 0;

	for (unsigned i = from; c && i < c->n; i++)
		bytes += c->layer[i]->info.file_size;
	return bytes;
}

/* Block devices tell nothing by their times; without locks nothing is known of anybody. */
static bool keeps(const struct img_chain *c, unsigned from)
{
	for (unsigned i = from; i < c->n; i++)
		if (c->layer[i]->file.block_device || c->layer[i]->file.lock == IO_UNLOCKED)
			return false;
	/* The base must be there, or the identity says too little. */
	return sums_worth(file_bytes(c, from)) && !c->layer[c->n - 1]->info.has_parent;
}

/* Nobody has written since the identity was taken, and whoever will is seen by it. */
static bool freeze(struct img_sums *s, struct img_chain *c, unsigned from)
{
	struct sums_head again;
	struct stat st;

	if (!sums_describe(&s->head, c, from))
		return false;
	for (unsigned i = from; i < c->n; i++)
		if (fstat(c->layer[i]->file.fd, &st) < 0 ||
		    !sums_out_later(&s->out, st.st_dev, &st.st_ctim))
			return false;
	s->frozen = sums_describe(&again, c, from) && sums_same(&again, &s->head);
	return s->frozen;
}

struct img_sums *img_sums_begin(struct img_chain *c)
{
	struct img_sums *s = keeps(c, 0) ? sums_new(c->layer[0]->file.real, c->size) : NULL;

	if (s && freeze(s, c, 0))
		return s;
	img_sums_drop(s);
	return NULL;
}

struct img_sums *img_sums_begin_new(struct img_chain *made, const struct img_chain *base)
{
	const struct img *l = made->layer[0];
	struct img_sums *s;
	struct stat st;

	if (fstat(l->file.fd, &st) < 0 || !sums_worth((uint64_t)st.st_size + file_bytes(base, 0)))
		return NULL;
	s = sums_new(l->file.real, made->size);
	/* Its name and mode will change, and the time of that; its content, with that time, not. */
	if (s && sums_out_later(&s->out, st.st_dev, &st.st_mtim)) {
		s->expect = st;
		s->expected = true;
		return s;
	}
	img_sums_drop(s);
	return NULL;
}

/* Still what it was when it was begun? */
static bool unchanged(struct img_sums *s, struct img_chain *c, unsigned from, const struct stat *st)
{
	struct sums_head now;

	if (!sums_describe(&now, c, from) || now.size != s->size)
		return false;
	if (s->frozen)
		return sums_same(&now, &s->head);
	s->head = now;
	return s->expected && st->st_ino == s->expect.st_ino && st->st_dev == s->expect.st_dev &&
	       st->st_size == s->expect.st_size &&
	       memcmp(&st->st_mtim, &s->expect.st_mtim, sizeof(st->st_mtim)) == 0;
}

static void store(struct img_sums *s, struct img_chain *c, unsigned from)
{
	struct stat st;

	if (keeps(c, from) && fstat(c->layer[from]->file.fd, &st) == 0 &&
	    unchanged(s, c, from, &st))
		(void)sums_out_publish(&s->out, c->layer[from]->file.real, &s->head, &st);
	img_sums_drop(s);
}

/* --- known -------------------------------------------------------------------------------- */

struct known {
	struct img_chain chain; /* from the layer on that is asked for; its layers are another's */
	uint64_t chunks;
	struct {
		unsigned layer;
		struct sums_in in;
		/* what the layers above say, as far as it was looked at */
		uint64_t from, to; /* chunks */
		bool touched;
	} file[MOST_FILES];
	unsigned n;
};

static void known_close(struct known *k)
{
	for (unsigned i = 0; k && i < k->n; i++)
		sums_in_close(&k->file[i].in);
	free(k);
}

static void known_rewind(struct known *k)
{
	for (unsigned i = 0; i < k->n; i++) {
		sums_in_rewind(&k->file[i].in);
		k->file[i].from = k->file[i].to = 0;
	}
}

/* NULL: nothing is. */
static struct known *known_open(struct img_chain *c, unsigned from)
{
	struct known *k = calloc(1, sizeof(*k));
	struct sums_head want;

	if (!k)
		return NULL;
	k->chain.n = c->n - from;
	k->chain.size = c->layer[from]->info.size;
	memcpy(k->chain.layer, c->layer + from, k->chain.n * sizeof(c->layer[0]));
	k->chunks = sums_chunks(k->chain.size);
	for (unsigned i = 0; i < k->chain.n && k->n < MOST_FILES; i++) {
		struct img *l = k->chain.layer[i];

		/* Those of a disk of another size say nothing of its last chunk, at least. */
		if (l->info.size != k->chain.size || !keeps(&k->chain, i) ||
		    !sums_describe(&want, &k->chain, i))
			continue;
		k->file[k->n].layer = i;
		if (sums_in_open(&k->file[k->n].in, l, &want))
			k->n++;
	}
	if (k->n)
		return k;
	free(k);
	return NULL;
}

/* Whether layers above that of file I have anything of CHUNK, and of how many more that is so. */
static int touched(struct known *k, unsigned i, uint64_t chunk, uint64_t *n, bool *yes,
		   struct img_err *err)
{
	const unsigned base = k->file[i].layer;
	uint64_t off = chunk * IMG_SUM_CHUNK, end, whole;
	struct img_run run;
	bool below;

	if (base == 0) {
		*yes = false;
		*n = k->chunks - chunk;
		return 0;
	}
	if (chunk < k->file[i].from || chunk >= k->file[i].to) {
		if (img_map_dense(&k->chain, off, k->chain.size - off, base, &run, err) < 0)
			return -1;
		end = run.off + run.len;
		below = run.kind == IMG_BELOW_RUN;
		whole = end == k->chain.size ? k->chunks : end / IMG_SUM_CHUNK;
		k->file[i].touched = !below || whole == chunk;
		k->file[i].from = chunk;
		k->file[i].to = !k->file[i].touched ? whole : below ? chunk + 1 : sums_chunks(end);
	}
	*yes = k->file[i].touched;
	*n = k->file[i].to - chunk;
	return 0;
}

/* From CHUNK on: the sum of *N chunks, or NULL: N unknown ones. CHUNK may not go back. */
static int known_at(struct known *k, uint64_t chunk, uint64_t *n, const uint8_t **sum,
		    struct img_err *err)
{
	const uint8_t *have;
	uint64_t some;
	bool yes;

	*sum = NULL;
	*n = k->chunks - chunk;
	for (unsigned i = 0; i < k->n; i++) {
		if (sums_in_at(&k->file[i].in, chunk, &some, &have, err) < 0)
			return -1;
		*n = u64_min(*n, some);
		if (!have)
			continue;
		if (touched(k, i, chunk, &some, &yes, err) < 0)
			return -1;
		*n = u64_min(*n, some);
		if (!yes) {
			*sum = have;
			return 0;
		}
	}
	return 0;
}

/* What is known from chunk S->NEXT on. */
static int add_known(struct img_sums *s, struct known *k, struct img_err *err)
{
	const uint8_t *sum;
	uint64_t n;

	for (uint64_t chunk = s->next; chunk < k->chunks; chunk += n) {
		if (known_at(k, chunk, &n, &sum, err) < 0)
			return -1;
		if (sum)
			img_sums_add(s, chunk, n, sum);
	}
	return 0;
}

void img_sums_store(struct img_sums *s, struct img_chain *c)
{
	struct known *k;

	if (!s)
		return;
	/* The reading was cut short. */
	k = s->frozen && s->next < sums_chunks(s->size) ? known_open(c, 0) : NULL;
	if (k)
		(void)add_known(s, k, NULL);
	known_close(k);
	store(s, c, 0);
}

/* --- used --------------------------------------------------------------------------------- */

/* Bytes that must be read for what is unknown; stops beyond LIMIT. */
static int count_unknown(struct known *k, uint64_t limit, uint64_t *bytes, struct img_err *err)
{
	const uint8_t *sum;
	struct img_run run;
	uint64_t n, end;

	*bytes = 0;
	for (uint64_t chunk = 0; chunk < k->chunks && *bytes <= limit; chunk += n) {
		if (known_at(k, chunk, &n, &sum, err) < 0)
			return -1;
		end = u64_min((chunk + n) * IMG_SUM_CHUNK, k->chain.size);
		for (uint64_t off = chunk * IMG_SUM_CHUNK; !sum && off < end; off += run.len) {
			if (img_map(&k->chain, off, end - off, k->chain.n, &run, err) < 0)
				return -1;
			*bytes += run.kind == IMG_DATA_RUN ? run.len : 0;
		}
	}
	return 0;
}

bool img_sums_known(struct img_chain *c, unsigned from)
{
	struct known *k = known_open(c, from);
	uint64_t bytes;
	bool yes = k && count_unknown(k, 0, &bytes, NULL) == 0 && bytes == 0;

	known_close(k);
	return yes;
}

struct summing {
	struct img_chain *c;
	const struct img_sum_how *how;
	bool skip; /* what is not known */
	struct img_sum *s;
	struct img_sums *kept;
	struct img_sum_job job;
};

static void on_chunks(void *ctx, uint64_t first, uint64_t n, const uint8_t sum[IMG_SUM_BYTES])
{
	struct summing *j = ctx;

	img_sums_add(j->kept, first, n, sum);
	if (j->how->chunks)
		j->how->chunks(j->how->chunks_ctx, first, n, sum);
}

/* The first CHUNKS. K is NULL: nothing is known. */
static int sum_first(struct summing *j, struct known *k, uint64_t chunks, struct img_err *err)
{
	const uint64_t size = img_size(j->c);
	const uint8_t *sum = NULL;

	for (uint64_t chunk = 0, n = chunks; chunk < chunks; chunk += n) {
		if (k && known_at(k, chunk, &n, &sum, err) < 0)
			return -1;
		n = u64_min(n, chunks - chunk);
		if (sum)
			img_sum_known(j->s, sum, n);
		else if (j->skip)
			img_sum_skip(j->s, n);
		else if (img_sum_range(j->c, j->s, chunk * IMG_SUM_CHUNK,
				       u64_min((chunk + n) * IMG_SUM_CHUNK, size), &j->job,
				       err) < 0)
			return -1;
	}
	return 0;
}

/* Nothing would be in a new file that is not in the one beside the leaf. */
static bool nothing_new(struct known *k, uint64_t unknown)
{
	return k && k->file[0].layer == 0 && unknown == 0;
}

int img_sum_first(struct img_chain *c, uint64_t chunks, bool skip, const struct img_sum_how *how,
		  struct img_sum *s, struct img_err *err)
{
	struct summing j = {
		.c = c, .s = s, .skip = skip, .job = {.progress = how->progress, .ctx = how->ctx}};
	struct known *k = known_open(c, 0);
	int rc = sum_first(&j, k, chunks, err);

	known_close(k);
	free(j.job.buf);
	return rc;
}

int img_sum_disk(struct img_chain *c, const struct img_sum_how *how, struct img_sum_result *r,
		 struct img_err *err)
{
	struct summing j = {
		.c = c, .how = how, .job = {.progress = how->progress, .ctx = how->ctx}};
	struct known *k = how->known && !how->seed ? known_open(c, 0) : NULL;
	uint64_t unknown = 0;
	int rc = -1;

	memset(r, 0, sizeof(*r));
	if (how->known && k &&
	    count_unknown(k, how->limit ? how->limit : UINT64_MAX, &unknown, err) < 0)
		goto out;
	if (how->known && how->limit && (!k || unknown > how->limit)) {
		rc = 0;
		goto out;
	}
	if (!how->seed && !nothing_new(k, unknown))
		j.kept = img_sums_begin(c);
	if (how->keep && !j.kept) {
		rc = 0;
		goto out;
	}
	if (k)
		known_rewind(k);
	j.s = img_sum_new_seeded(img_size(c), how->seed);
	if (!j.s) {
		img_err_errno(err, ENOMEM, "sum");
		goto out;
	}
	img_sum_watch(j.s, on_chunks, &j);
	rc = sum_first(&j, k, sums_chunks(img_size(c)), err);
	if (rc < 0)
		goto out;
	img_sum_final(j.s, r->sum);
	r->done = true;
	r->read = j.job.read;
out:
	/* Also where it was cut short: whoever comes next goes on there. */
	img_sums_store(j.kept, c);
	img_sum_free(j.s);
	free(j.job.buf);
	known_close(k);
	return rc;
}

/* --- merged ------------------------------------------------------------------------------- */

struct img_sums *img_sums_before_merge(struct img_chain *c, unsigned to)
{
	struct known *k = known_open(c, 0);
	struct img_sums *s = k ? sums_new(c->layer[to]->file.real, c->size) : NULL;

	if (s && add_known(s, k, NULL) < 0) {
		img_sums_drop(s);
		s = NULL;
	}
	known_close(k);
	/* All of them are of files that will have been written to. */
	for (unsigned i = 0; i <= to; i++)
		img_sums_remove(c->layer[i]->file.real);
	return s;
}

void img_sums_after_merge(struct img_sums *s, struct img_chain *c, unsigned to)
{
	if (s && freeze(s, c, to))
		store(s, c, to);
	else
		img_sums_drop(s);
}
