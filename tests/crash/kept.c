/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Sums that are kept beside disks, at their worst: disks of any size have them, and neither times
 * nor the boot tell that a file was written to, as when a disk loses power under a running system.
 * So they are believed as long as they are there, and right only if our own writers remove them,
 * durably, before they write, and make them when all is durable.
 */
#include "config.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "bytes.h"
#include "kept.h"
#include "sums.h"

bool __wrap_sums_worth(uint64_t file_bytes);
bool __wrap_sums_worth(uint64_t file_bytes)
{
	(void)file_bytes;
	return true;
}

bool __wrap_sums_out_later(struct sums_out *o, dev_t dev, const struct timespec *t);
bool __wrap_sums_out_later(struct sums_out *o, dev_t dev, const struct timespec *t)
{
	(void)dev, (void)t;
	return !o->err.code;
}

/* A file that was replaced is told apart, one that was written to is not. */
bool __wrap_sums_describe(struct sums_head *h, struct img_chain *c, unsigned from);
bool __wrap_sums_describe(struct sums_head *h, struct img_chain *c, unsigned from)
{
	uint8_t of[IMG_SUM_BYTES + 16 + 8] = {0};
	struct stat st;

	memset(h, 0, sizeof(*h));
	h->size = c->layer[from]->info.size;
	for (unsigned i = from; i < c->n; i++) {
		memcpy(of, h->identity, IMG_SUM_BYTES);
		memcpy(of + IMG_SUM_BYTES, c->layer[i]->info.uuid, 16);
		if (fstat(c->layer[i]->file.fd, &st) < 0)
			return false;
		le64_put(of + IMG_SUM_BYTES + 16, st.st_ino);
		img_sum_chunk(of, sizeof(of), 0, h->identity);
	}
	return true;
}

static bool is_disk(const char *name)
{
	const char *dot = strrchr(name, '.');

	return *name != '.' && dot &&
	       (strcmp(dot, ".vhd") == 0 || strcmp(dot, ".avhd") == 0 || strcmp(dot, ".raw") == 0);
}

static bool is_sums(const char *name)
{
	const char *dot = strrchr(name, '.');

	return dot && strcmp(dot, ".sums") == 0;
}

static struct img_chain *open_any(struct world *w, const char *name)
{
	struct img_open o = open_as(w);
	struct img_chain *c;

	o.maybe_raw = true;
	return img_open(&c, in_dir(w, name), &o, NULL) < 0 ? NULL : c;
}

void kept_plant(struct world *w)
{
	struct img_sum_how how = {.known = true};
	struct img_sum_result r;
	struct tape t = {0};
	struct fs left;

	fs_store(&w->base, w->dir, w->pool);
	record_start(w->dir, w->pool, &w->base, &t, (struct fault){0});
	for (int i = 0; i < w->base.names; i++) {
		const char *name = w->base.name[i].path;
		struct img_chain *c = is_disk(name) ? open_any(w, name) : NULL;

		if (c)
			(void)img_sum_disk(c, &how, &r, NULL);
		img_close(c);
	}
	record_stop();
	/* With the same inodes, which the sums tell. */
	fs_replay(&left, &w->base, &t, t.n, (struct choice){TAKE_ALL, 0});
	tape_free(&t);
	fs_free(&w->base);
	w->base = left;
}

unsigned long kept_believed;

static int on_read(void *ctx, uint64_t done, uint64_t planned)
{
	(void)done, (void)planned;
	*(bool *)ctx = true;
	return 0;
}

/* What is known of the disk, and read where nothing is, against what is read. */
static bool holds(struct world *w, const char *name)
{
	struct img_chain *c = open_any(w, name);
	struct img_sum *s = c ? img_sum_new(img_size(c)) : NULL;
	char known[IMG_SUM_STR] = "", content[IMG_SUM_STR] = "";
	bool read = false, ok = true;
	const struct img_sum_how how = {.progress = on_read, .ctx = &read};

	if (s && img_sum_first(c, sums_chunks(img_size(c)), false, &how, s, NULL) == 0 &&
	    img_sum_chain(c, NULL, NULL, content, NULL) == 0) {
		img_sum_final(s, known);
		ok = strcmp(known, content) == 0;
	}
	kept_believed += s && !read;
	img_sum_free(s);
	img_close(c);
	return ok ||
	       wrong(w, "%s: the sums that are kept say %s, but it reads %s", name, known, content);
}

/* What was removed may come back then, as in record.c's unlink(). */
bool kept_removal_failed(const struct tape *t)
{
	for (unsigned i = 1; i < t->n; i++)
		if (t->ev[i].kind == EV_SYNC_DIR && t->ev[i].failed &&
		    t->ev[i - 1].kind == EV_UNLINK && is_sums(t->ev[i - 1].path))
			return true;
	return false;
}

bool kept_holds(struct world *w, const struct when *when)
{
	struct dirent **all;
	int n = scandir(w->dir, &all, NULL, NULL);
	bool any = false, ok = true;

	if (n < 0)
		die("%s cannot be read", w->dir);
	for (int i = 0; i < n; i++)
		any |= is_sums(all[i]->d_name) && !w->unsure && !kept_removal_failed(when->tape);
	for (int i = 0; i < n; i++) {
		ok = ok && (!any || !is_disk(all[i]->d_name) || holds(w, all[i]->d_name));
		free(all[i]);
	}
	free(all);
	return ok;
}
