/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Any bytes as an image, or as a child and its parent. Nothing may crash, hang or eat memory; and
 * what was opened must behave as a disk: a map covers it without gaps, what a write stored is
 * read back, all else stays, also after closing, after a merge. What vhd-check finds sound opens;
 * what it mends is mended, and comes back byte for byte when that is undone.
 *
 * Input: 8 bytes of control, then the file. Control: two bytes of flags; the length of the first
 * file when a parent follows it; where a hole is put into the first file (sector) and its length
 * (64 KiB units), so that small inputs make images with large blocks; a seed for writes.
 */
#include "config.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "bytes.h"
#include "fuzz.h"
#include "vhd_fmt.h"

enum {
	F_UNLOCKED = 1,
	F_SINGLE = 2,
	F_RAW = 4,
	F_MAYBE_RAW = 8,
	F_WRITABLE = 16,
	F_SEAL = 32, /* correct checksums, else few inputs come past them */
	F_ANYWHERE = 64,
	F_SAVED = 128,
	F_PARENT = 256, /* a second file follows */
	F_JOIN = 512,	/* and is the parent that the first one wants */
	F_MERGE = 1024,
	F_REPAIR = 2048,  /* checked, mended, taken back */
	F_SIDECAR = 4096, /* the second file is what a change that was cut short left */
};

struct job {
	unsigned flags;
	uint8_t seed;
	struct img_open opts;
};

#define IMAGE "image.vhd"
#define PARENT "parent.vhd"

FUZZ_UNCOUNTED static void seal_header(uint8_t *buf, size_t len, uint64_t off)
{
	uint32_t sum = 0;

	if (off > len || len - off < VHD_HEADER_LEN)
		return;
	for (size_t i = 0; i < VHD_HEADER_LEN; i++)
		if (i < 36 || i >= 40)
			sum += buf[off + i];
	be32_put(buf + off + 36, ~sum);
}

static void seal(uint8_t *buf, size_t len)
{
	if (len < VHD_FOOTER_LEN)
		return;
	if (memcmp(buf, "conectix", 8) == 0) {
		vhd_footer_seal(buf);
		seal_header(buf, len, be64_get(buf + 16));
	}
	if (memcmp(buf + len - VHD_FOOTER_LEN, "conectix", 8) == 0) {
		vhd_footer_seal(buf + len - VHD_FOOTER_LEN);
		seal_header(buf, len, be64_get(buf + len - VHD_FOOTER_LEN + 16));
	}
}

/* The child's header gets the UUID of the parent's front footer. */
static void join(uint8_t *child, size_t child_len, const uint8_t *parent, size_t parent_len)
{
	uint64_t head;

	if (child_len < VHD_FOOTER_LEN || parent_len < VHD_FOOTER_LEN)
		return;
	head = be64_get(child + 16);
	if (head <= child_len && child_len - head >= VHD_HEADER_LEN)
		memcpy(child + head + 40, parent + 68, 16);
}

/* The image with a hole of HOLE bytes at AT. */
static void write_image(const uint8_t *buf, size_t len, uint64_t at, uint64_t hole)
{
	int fd = open(fuzz_path(IMAGE), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	size_t first = at < len ? (size_t)at : len;

	if (fd < 0 || pwrite(fd, buf, first, 0) != (ssize_t)first ||
	    pwrite(fd, buf + first, len - first, (off_t)(first + hole)) != (ssize_t)(len - first) ||
	    (first == len && hole && ftruncate(fd, (off_t)(len + hole)) < 0) || close(fd) < 0)
		fuzz_die(NULL, "cannot write the image");
}

/* Beside the image, sealed: it names this file, and its sum is right. */
static void write_sidecar(uint8_t *buf, size_t len, bool sealed)
{
	XXH128_canonical_t sum;
	struct statx st;

	if (sealed && len >= 56 &&
	    statx(AT_FDCWD, fuzz_path(IMAGE), 0, STATX_INO | STATX_BTIME, &st) == 0) {
		be64_put(buf + 16, st.stx_ino);
		be64_put(buf + 24,
			 (uint64_t)st.stx_btime.tv_sec * 1000000000u + st.stx_btime.tv_nsec);
		XXH128_canonicalFromHash(&sum, XXH3_128bits(buf, len - 16));
		memcpy(buf + len - 16, sum.digest, 16);
	}
	fuzz_file(IMAGE ".rollback", buf, len);
}

static const char *const left_over[] = {PARENT, PARENT ".merging", IMAGE ".rollback", IMAGE ".undo",
					IMAGE ".undo.2"};

static void make_files(struct job *j, struct fuzz_in *in, uint8_t *copy)
{
	size_t first = fuzz_u16(in);
	uint64_t at = (uint64_t)fuzz_u16(in) * 512, hole = (uint64_t)fuzz_u8(in) << 16;

	j->seed = fuzz_u8(in);
	if (!(j->flags & (F_PARENT | F_SIDECAR)) || first > in->n)
		first = in->n;
	memcpy(copy, in->p, in->n);
	if (j->flags & F_JOIN)
		join(copy, first, copy + first, in->n - first);
	if (j->flags & F_SEAL) {
		seal(copy, first);
		seal(copy + first, in->n - first);
	}
	write_image(copy, first, at, hole);
	for (size_t i = 0; i < sizeof(left_over) / sizeof(left_over[0]); i++)
		(void)unlink(fuzz_path(left_over[i]));
	if (j->flags & F_SIDECAR)
		write_sidecar(copy + first, in->n - first, j->flags & F_SEAL);
	else if (j->flags & F_PARENT)
		fuzz_file(PARENT, copy + first, in->n - first);
}

/* Some of the disk: all of a small one, both ends and a few places of a large one. */
#define SPOTS 8
#define SPOT (16u << 10)

struct view {
	uint64_t off[SPOTS];
	uint32_t len[SPOTS];
	uint8_t buf[SPOTS][SPOT];
};

static bool take_view(struct img_chain *c, struct view *v, struct img_err *err)
{
	uint64_t size = img_size(c) & ~511ull, step = size / SPOTS & ~511ull;

	if (step < SPOT)
		step = SPOT;
	for (unsigned i = 0; i < SPOTS; i++) {
		uint64_t off = i == SPOTS - 1 && size > SPOTS * SPOT ? size - SPOT : i * step;

		v->off[i] = off;
		v->len[i] = off < size ? (uint32_t)u64_min(SPOT, size - off) : 0;
		if (v->len[i] && img_read(c, v->buf[i], off, v->len[i], err) < 0)
			return false;
	}
	return true;
}

/* What the view should be after a write of BUF (NULL: zeros). */
static void change_view(struct view *v, uint64_t off, uint32_t len, const uint8_t *buf)
{
	for (unsigned i = 0; i < SPOTS; i++) {
		uint64_t from = u64_max(off, v->off[i]),
			 to = u64_min(off + len, v->off[i] + v->len[i]);

		if (from >= to)
			continue;
		if (buf)
			memcpy(v->buf[i] + (from - v->off[i]), buf + (from - off), to - from);
		else
			memset(v->buf[i] + (from - v->off[i]), 0, to - from);
	}
}

FUZZ_UNCOUNTED static void same_view(struct img_chain *c, const struct view *want,
				     const char *after)
{
	static struct view now;
	struct img_err err = {0};

	if (!take_view(c, &now, &err))
		fuzz_die(&err, "cannot be read after %s", after);
	for (unsigned i = 0; i < SPOTS; i++)
		for (uint32_t n = 0; n < want->len[i]; n += 512)
			if (memcmp(now.buf[i] + n, want->buf[i] + n, 512) != 0)
				fuzz_die(NULL, "sector %llu differs after %s",
					 (unsigned long long)(want->off[i] + n) / 512, after);
}

static void check_run(struct img_chain *c, const struct img_run *run, uint64_t off, uint64_t len,
		      unsigned base)
{
	static uint8_t buf[4096];
	struct img_err err = {0};
	struct img_run part = *run;

	if (run->off != off || run->len == 0 || run->len > len ||
	    (run->kind == IMG_BELOW_RUN && base >= img_layers(c)))
		fuzz_die(NULL, "run of kind %d at %llu+%llu for %llu+%llu", run->kind,
			 (unsigned long long)run->off, (unsigned long long)run->len,
			 (unsigned long long)off, (unsigned long long)len);
	if (run->kind != IMG_DATA_RUN)
		return;
	if (run->layer >= base || run->layer >= img_layers(c))
		fuzz_die(NULL, "data in layer %u of %u, base %u", run->layer, img_layers(c), base);
	if (part.len > sizeof(buf)) {
		part.file_off += part.len - sizeof(buf);
		part.off += part.len - sizeof(buf);
		part.len = sizeof(buf);
	}
	if (img_read_run(c, &part, buf, &err) < 0)
		fuzz_die(&err, "a run that cannot be read");
}

static void walk(struct img_chain *c, unsigned base)
{
	struct img_err err = {0};
	struct img_run run;
	uint64_t off = 0, size = img_size(c);

	for (int n = 0; off < size && n < 500; n++) {
		if (img_map(c, off, size - off, base, &run, &err) < 0)
			return;
		check_run(c, &run, off, size - off, base);
		off += run.len;
	}
}

static void look(struct img_chain *c)
{
	char uuid[IMG_UUID_STR], sum[IMG_SUM_STR];
	struct img_err err = {0};
	size_t n = 0;

	for (unsigned i = 0; i < img_layers(c); i++) {
		const struct img_info *info = img_layer_info(c, i);

		img_uuid_str(info->uuid, uuid);
		n += strlen(img_type_name(info->type)) + strlen(info->creator) +
		     strlen(img_layer_path(c, i)) + strlen(img_layer_real(c, i)) +
		     (info->warning ? strlen(info->warning) : 0) +
		     (info->parent_name ? strlen(info->parent_name) : 0);
		if (img_find_layer(c, img_layer_path(c, i), &err) != (int)i)
			fuzz_die(&err, "layer %u is not found by its path", i);
	}
	if (n == 0)
		fuzz_die(NULL, "nothing is known of the disk");
	walk(c, img_layers(c));
	walk(c, 1);
	if (img_size(c) <= 1u << 20)
		(void)img_sum_chain(c, NULL, NULL, sum, &err);
}

static struct img_chain *must_reopen(const struct img_open *opts, const char *after)
{
	struct img_err err = {0};
	struct img_chain *c;

	if (img_open(&c, fuzz_path(IMAGE), opts, &err) < 0)
		fuzz_die(&err, "cannot be opened after %s", after);
	return c;
}

/* Sectors that are trimmed read as before or as zeros. */
static void try_trim(struct img_chain *c, struct view *v, uint64_t off, uint32_t len)
{
	static uint8_t old[SPOT], now[SPOT];
	static const uint8_t zeros[512];
	struct img_err err = {0};

	if (img_read(c, old, off, len, &err) < 0 || img_trim(c, off, len, &err) < 0)
		return;
	if (img_read(c, now, off, len, &err) < 0)
		fuzz_die(&err, "cannot be read after a trim");
	for (uint32_t n = 0; n < len; n += 512)
		if (memcmp(now + n, old + n, 512) != 0 && memcmp(now + n, zeros, 512) != 0)
			fuzz_die(NULL, "a trimmed sector is neither old nor zeros");
	change_view(v, off, len, now);
}

static void change(const struct job *j, struct img_chain **c, struct view *v)
{
	static uint8_t data[SPOT];
	struct img_err err = {0};
	uint64_t nsec = img_size(*c) / 512;
	struct img_open again = j->opts;

	if (nsec == 0)
		return;
	for (unsigned i = 0; i < 4; i++) {
		uint64_t sec = j->seed & 1 && i % 2
				       ? nsec - 1 - (j->seed >> 3) % nsec
				       : (uint64_t)(j->seed + 7 * i) * (1 + i * 40503ull) % nsec;
		uint32_t len =
			(uint32_t)u64_min(SPOT, u64_min(nsec - sec, 1 + (j->seed ^ i) % 32) * 512);

		fuzz_pattern(data, len, j->seed + i);
		if (i == 3) {
			try_trim(*c, v, sec * 512, len);
			continue;
		}
		if ((i == 1 ? img_zero(*c, sec * 512, len, false, &err)
			    : img_write(*c, data, sec * 512, len, i == 2, &err)) < 0)
			return; /* the rest is as it was or half done, as after a real failure */
		change_view(v, sec * 512, len, i == 1 ? NULL : data);
		same_view(*c, v, i == 1 ? "zeroing" : "a write");
	}
	img_close(*c);
	*c = must_reopen(&again, "writing");
	same_view(*c, v, "writing and closing");
}

/* The child's view is the same before and after; then the parent alone shows it. */
static void merge(const struct job *j, const struct view *v)
{
	struct img_open opts = j->opts;
	struct img_merge m = {.open = &opts};
	struct img_merge_stats stats;
	struct img_err err = {0};
	struct img_chain *c;
	bool raw = false;
	char *parent = NULL;
	int rc;

	/* Never into a file that the input names and this folder does not have. */
	opts.parent_anywhere = opts.single = opts.unlocked = false;
	opts.merge = opts.writable = true;
	if (img_open(&c, fuzz_path(IMAGE), &opts, &err) < 0)
		return;
	rc = img_merge(c, &m, &stats, &err);
	if (rc == 0) {
		parent = strdup(img_layer_real(c, 1));
		raw = img_layer_info(c, 1)->type == IMG_RAW;
	}
	same_view(c, v, rc < 0 ? "a refused merge" : "a merge, through the child");
	img_close(c);
	if (rc < 0)
		return;
	opts = (struct img_open){.raw = raw};
	memset(&err, 0, sizeof(err));
	if (img_open(&c, parent, &opts, &err) < 0)
		fuzz_die(&err, "the parent does not open after a merge");
	same_view(c, v, "a merge");
	img_close(c);
	free(parent);
}

/* The bytes of a file, as a sum; holes are cheap to read here. */
static uint64_t file_sum(const char *name)
{
	static uint8_t buf[1 << 20];
	int fd = open(fuzz_path(name), O_RDONLY | O_CLOEXEC);
	XXH64_hash_t sum = 0;
	ssize_t n;

	if (fd < 0)
		fuzz_die(NULL, "%s is gone", name);
	while ((n = read(fd, buf, sizeof(buf))) > 0)
		sum = XXH3_64bits_withSeed(buf, (size_t)n, sum + 1);
	close(fd);
	return sum;
}

/* What a check told, one by one. */
struct told {
	uint64_t errors, warnings, notes;
	bool loss;
	bool no_header; /* it cannot be mended, nor what needs it */
	bool foreign;	/* whole, but nothing that we can read */
};

static void told(void *ctx, const struct img_fault *f)
{
	struct told *t = ctx;

	if (getenv("FUZZ_VERBOSE"))
		fprintf(stderr, "%s%s at %lld: found %s, expected %s, loss %s\n", f->id,
			f->mendable ? " (mendable)" : "", (long long)f->offset, f->found,
			f->expected, f->loss);
	t->errors += f->severity == IMG_ERROR;
	t->warnings += f->severity == IMG_WARNING;
	t->notes += f->severity == IMG_NOTE;
	t->no_header |=
		f->severity == IMG_ERROR && !f->mendable && strncmp(f->id, "header-", 7) == 0;
	t->foreign |= strcmp(f->id, "encrypted") == 0 || strcmp(f->id, "bitmap-order") == 0;
	t->loss |= f->loss[0] != '\0';
	if (!f->id || !f->what || !f->path || !f->id[0] || !f->what[0] ||
	    strnlen(f->found, IMG_FAULT_TEXT) == IMG_FAULT_TEXT ||
	    strnlen(f->expected, IMG_FAULT_TEXT) == IMG_FAULT_TEXT ||
	    strnlen(f->loss, IMG_FAULT_TEXT) == IMG_FAULT_TEXT)
		fuzz_die(NULL, "a fault without a name, or without an end");
}

static bool check(struct img_check *o, struct img_check_result *r, struct told *t)
{
	struct img_err err = {0};

	o->fault = told;
	o->ctx = t;
	if (img_check(fuzz_path(IMAGE), o, r, &err) < 0)
		return false;
	if (t->errors != r->errors || t->warnings != r->warnings || t->notes != r->notes)
		fuzz_die(NULL, "%llu errors told, %llu counted", (unsigned long long)t->errors,
			 (unsigned long long)r->errors);
	return true;
}

static bool open_and_view(struct view *v, struct img_err *err)
{
	struct img_open o = {.single = true};
	struct img_chain *c;
	bool ok;

	memset(err, 0, sizeof(*err));
	if (img_open(&c, fuzz_path(IMAGE), &o, err) < 0)
		return false;
	ok = take_view(c, v, err);
	img_close(c);
	return ok;
}

/* Mended: a second run finds nothing to mend; --undo brings every byte back. */
static void mend(struct img_check *o, uint64_t sum)
{
	struct img_check_result res, after;
	struct told t = {0};
	struct img_err err = {0};
	static struct view before, now;
	bool was_open = open_and_view(&before, &err);

	o->ctx = &t;
	o->dry_run = true;
	if (img_repair(fuzz_path(IMAGE), o, &res, &after, &err) == 0 && file_sum(IMAGE) != sum)
		fuzz_die(NULL, "a dry run changed the file");
	o->dry_run = false;
	if (getenv("FUZZ_VERBOSE"))
		fprintf(stderr, "-- repair\n");
	memset(&t, 0, sizeof(t));
	memset(&err, 0, sizeof(err));
	if (img_repair(fuzz_path(IMAGE), o, &res, &after, &err) < 0) {
		if (!res.repaired && file_sum(IMAGE) != sum)
			fuzz_die(&err, "a repair that failed changed the file");
		return;
	}
	if (!o->chain && res.mendable && after.mendable && !t.no_header)
		fuzz_die(NULL, "%llu faults to be mended are still there",
			 (unsigned long long)after.mendable);
	if (!res.repaired)
		return;
	/* It showed something before, and was told to have lost nothing: it shows the same. */
	if (was_open && !t.loss && res.errors == 0) {
		if (!open_and_view(&now, &err))
			fuzz_die(&err, "opened before the repair, and does not now");
		for (unsigned i = 0; i < SPOTS; i++)
			if (now.len[i] == before.len[i] &&
			    memcmp(now.buf[i], before.buf[i], before.len[i]) != 0)
				fuzz_die(NULL, "a repair of warnings changed what the guest sees");
	}
	if (img_undo(fuzz_path(IMAGE), false, &err) < 0)
		fuzz_die(&err, "cannot be undone");
	if (file_sum(IMAGE) != sum)
		fuzz_die(NULL, "undone, and not as before");
}

static void repair(const struct job *j)
{
	struct img_check o = {.open = {.parent_anywhere = j->opts.parent_anywhere},
			      .chain = j->seed & 1,
			      .no_bitmaps = j->seed & 2};
	struct img_check_result r;
	struct told t = {0};
	struct img_err err = {0};
	static struct view v;
	uint64_t sum;

	o.open.unlocked = j->seed & 4;
	sum = file_sum(IMAGE);
	if (!check(&o, &r, &t))
		return;
	if (file_sum(IMAGE) != sum)
		fuzz_die(NULL, "a check changed the file");
	if (r.errors == 0 && !t.foreign && !o.no_bitmaps && !(j->flags & F_SIDECAR) &&
	    !open_and_view(&v, &err))
		fuzz_die(&err, "sound, and does not open");
	o.open.unlocked = false;
	if (!(j->flags & F_SIDECAR))
		mend(&o, sum);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t copy[1 << 20];
	static struct view before;
	struct fuzz_in in = {data, size};
	struct job j = {.flags = fuzz_u16(&in)};
	struct img_err err = {0};
	struct img_chain *c;

	if (size > sizeof(copy))
		return 0;
	fuzz_room(16 << 20);
	make_files(&j, &in, copy);
	j.opts = (struct img_open){
		.unlocked = (j.flags & F_UNLOCKED) && !(j.flags & F_WRITABLE),
		.single = j.flags & F_SINGLE,
		.raw = j.flags & F_RAW,
		.maybe_raw = j.flags & F_MAYBE_RAW,
		.writable = j.flags & F_WRITABLE,
		.parent_anywhere = j.flags & F_ANYWHERE,
		.ignore_saved_state = j.flags & F_SAVED,
	};
	if (j.flags & F_REPAIR) {
		repair(&j);
		return 0;
	}
	if (img_open(&c, fuzz_path(IMAGE), &j.opts, &err) < 0) {
		if (err.code == 0 || err.code == IMG_BUG || err.msg[0] == '\0')
			fuzz_die(&err, "refused without a reason");
		return 0;
	}
	look(c);
	if (take_view(c, &before, &err)) {
		if (j.flags & F_WRITABLE)
			change(&j, &c, &before);
		if (j.flags & F_MERGE && !(j.flags & (F_SINGLE | F_ANYWHERE))) {
			img_close(c);
			merge(&j, &before);
			return 0;
		}
	}
	img_close(c);
	return 0;
}
