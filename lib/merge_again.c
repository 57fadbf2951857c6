/* SPDX-License-Identifier: BSD-2-Clause */
/* A merge of what was merged before: nothing to do, more, or old data that would come back. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "merge.h"

#define BUF_LEN (256u << 10)

struct compare {
	struct img_chain below; /* the target and what is below it */
	uint8_t *have, *want;
	bool differs;
	uint64_t at;
};

/* Sets DIFFERS, or not. */
static int compare_piece(struct compare *p, uint64_t off, size_t len, struct img_err *err)
{
	if (off + len > p->below.size) {
		p->differs = true;
		p->at = p->below.size;
		return 0;
	}
	if (img_read(&p->below, p->have, off, len, err) < 0)
		return -1;
	for (size_t i = 0; i < len && !p->differs; i += SECTOR)
		if (memcmp(p->have + i, p->want + i, u64_min(SECTOR, len - i)) != 0) {
			p->differs = true;
			p->at = off + i;
		}
	return 0;
}

static int run_compare(struct merge *m, const struct img_run *r, struct img_err *err)
{
	struct compare *p = m->compare;

	for (uint64_t done = 0, n; done < r->len && !p->differs; done += n) {
		n = u64_min(r->len - done, BUF_LEN);
		if (io_read(&m->c->layer[r->layer]->file, p->want, n, r->file_off + done, err) <
			    0 ||
		    compare_piece(p, r->off + done, n, err) < 0)
			return -1;
		m->done += n;
		if (m->opts->progress && m->opts->progress(m->opts->ctx, m->done, m->done))
			return img_err_set(err, IMG_AGAIN, "%s: interrupted; nothing was changed",
					   m->leaf->file.path);
	}
	/* No error, and no more of it. */
	return p->differs ? -1 : 0;
}

/* Whether the target holds all that the layers above it hold: then a merge would change nothing. */
static int compare(struct merge *m, bool *same, uint64_t *at, struct img_err *err)
{
	struct compare p = {.below = {.n = m->c->n - m->to, .size = m->target->info.size}};
	int rc = -1;

	memcpy(p.below.layer, m->c->layer + m->to, p.below.n * sizeof(p.below.layer[0]));
	p.have = malloc(BUF_LEN);
	p.want = malloc(BUF_LEN);
	m->compare = &p;
	if (m->target->info.size < m->leaf->info.size) {
		p.differs = true;
		p.at = m->target->info.size;
		rc = 0;
	} else if (!p.have || !p.want) {
		img_err_errno(err, ENOMEM, "%s", m->leaf->file.path);
	} else if (merge_walk(m, run_compare, err) == 0 || p.differs) {
		rc = 0;
	}
	*same = !p.differs;
	*at = p.at;
	m->compare = NULL;
	m->done = 0;
	free(p.have);
	free(p.want);
	return rc;
}

/* Who is on top of what was merged, or was written to since, has more to be merged. */
static void refuse(struct merge *m, const struct img_absorbed *a, uint64_t at)
{
	const char *leaf = m->leaf->file.path, *target = m->target->file.path;

	merge_block(
		m, IMG_PREFLIGHT,
		"%s: %s was merged into %s before, and %s; they differ at offset %" PRIu64
		": a merge would bring back what %s held before. Delete %s if %s is what is wanted, "
		"or merge it all the same with --again, as when %s was put back from a backup",
		leaf, a->same_leaf ? "it" : "what it stands on", target,
		!a->target_same ? "that was written to, or replaced, since"
				: "whether that was written to since cannot be told",
		at, target, leaf, target, target);
}

/* Another one, which should be finished or removed first. */
static int other(struct merge *m, const struct img_marker *marker, struct img_err *err)
{
	if (!img_absorbed_there(marker))
		return 0;
	if (marker->state == IMG_MARKER_MERGED)
		merge_block(
			m, IMG_AGAIN,
			"%s: a merge was cut short; finish it first with: vhd-merge --delete --to=%s %s",
			m->target->file.path, m->target->file.real, marker->leaf);
	m->kept = strdup(marker->leaf);
	return m->kept ? 0 : img_err_errno(err, ENOMEM, "%s", m->target->file.path);
}

int merge_again(struct merge *m, const struct img_marker *marker, struct img_err *err)
{
	struct img_absorbed a;
	uint64_t at;
	bool same;

	if (memcmp(marker->child_uuid, m->c->layer[m->to - 1]->info.uuid, 16) != 0)
		return other(m, marker, err);
	if (img_absorbed_judge(m->c, m->to, marker, &a, err) < 0)
		return -1;
	if (marker->state == IMG_MARKER_MERGED && a.above_same && a.trusted && !a.replaced) {
		/* It was being removed: who wrote to the target meanwhile does not matter. */
		m->merged = true;
	} else if (a.sure && a.above_same && (a.target_same || (m->opts->del && !a.replaced))) {
		m->merged = true;
	} else if (!m->opts->again && !(a.sure && a.target_same)) {
		if (compare(m, &same, &at, err) < 0)
			return -1;
		m->merged = same;
		if (!same)
			refuse(m, &a, at);
	}
	m->stats->already = m->merged;
	return 0;
}
