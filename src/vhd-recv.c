/* SPDX-License-Identifier: BSD-2-Clause */
/* A stream on stdin becomes a disk, or nothing does. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "bytes.h"
#include "cli.h"
#include "io.h"
#include "partial.h"
#include "readback.h"
#include "receipt.h"
#include "stream.h"

static const char help[] =
	"Usage: vhd-recv [OPTION]... FILE < STREAM\n"
	"       vhd-recv --status [--json] FILE | --token FILE | --abort FILE\n"
	"Makes FILE out of a stream of vhd-send: a whole disk, or with --parent the AVHD that an\n"
	"increment is. FILE appears only when everything arrived and is durable. The receipt, one\n"
	"line of JSON, goes to stdout. Of a long stream that is cut, what came is kept beside FILE:\n"
	"  vhd-send --resume=\"$(vhd-recv --token FILE)\" DISK | vhd-recv FILE\n"
	"begins, or goes on.\n"
	"\n"
	"      --token             print the token that says where to go on; nothing: from the start\n"
	"      --status            what is there of FILE so far\n"
	"      --abort             remove what is there of FILE so far\n"
	"      --parent=FILE       the base of an increment; FILE becomes its child\n"
	"      --onto              FILE is there; what the stream says is changed in it, or nothing is\n"
	"      --verify-base       compare its content sum with the stream's first\n"
	"      --type=TYPE         keep (the default), dynamic, fixed or raw\n"
	"      --new-uuid          a copy with an identity of its own; by default the disk keeps "
	"its\n"
	"                          UUID\n"
	"      --verify            read back what was written and compare\n"
	"      --receipt=FILE      the receipt to FILE as well\n"
	"  -f, --force             replace existing files\n"
	"      --parent-dir=DIR    parents of the parent may lie below DIR too (repeatable)\n"
	"      --parent-anywhere   they may lie anywhere\n"
	"      --json              the status in JSON\n"
	"      --progress=json     progress as JSON lines on stderr\n"
	"  -q, --quiet             no progress\n"
	"  -h, --help\n"
	"  -V, --version\n";

enum { TYPE_KEEP = -1 };

/* The disk works while the stream comes in, instead of all at the end. */
enum { WRITEBACK = 16 << 20 };

enum verb { RECEIVE, TOKEN, STATUS, ABORT };

struct recv {
	struct cli_common common;
	enum verb verb;
	bool json;
	const char *file, *parent, *receipt;
	const char *path; /* what is made: FILE, or with --onto a child of it */
	bool onto, verify_base, new_uuid, verify, force;
	int type; /* enum img_type or TYPE_KEEP */
	struct img_chain *base;
	struct stream_begin begin;
	struct stream_totals totals;
	struct img_create create;
	uint8_t uuid[16], base_uuid[16], base_id[IMG_SUM_BYTES];
	bool base_has_uuid;
	char *child; /* --onto */
	struct img_new *new;
	struct partial *partial;
	bool published; /* by an earlier run, which did not come to its end */
	bool worthless; /* what is there is not to be gone on with */
	bool kept;	/* it is */
	struct cli_progress progress;
	bool show;
	uint64_t done, unwritten; /* bytes; since the last hint to the disk */
};

enum {
	OPT_PARENT = CLI_TOOL,
	OPT_VERIFY_BASE,
	OPT_TYPE,
	OPT_NEW_UUID,
	OPT_VERIFY,
	OPT_RECEIPT,
	OPT_TOKEN,
	OPT_ONTO,
	OPT_STATUS,
	OPT_ABORT,
};

static const struct option options[] = {
	CLI_COMMON_LONG,
	CLI_CHAIN_LONG,
	{"parent", required_argument, NULL, OPT_PARENT},
	{"verify-base", no_argument, NULL, OPT_VERIFY_BASE},
	{"type", required_argument, NULL, OPT_TYPE},
	{"new-uuid", no_argument, NULL, OPT_NEW_UUID},
	{"verify", no_argument, NULL, OPT_VERIFY},
	{"receipt", required_argument, NULL, OPT_RECEIPT},
	{"onto", no_argument, NULL, OPT_ONTO},
	{"token", no_argument, NULL, OPT_TOKEN},
	{"status", no_argument, NULL, OPT_STATUS},
	{"abort", no_argument, NULL, OPT_ABORT},
	{"json", no_argument, NULL, CLI_JSON},
	{"force", no_argument, NULL, 'f'},
	{NULL, 0, NULL, 0},
};

static int parse_type(const char *s)
{
	if (!strcmp(s, "keep"))
		return TYPE_KEEP;
	for (int t = IMG_RAW; t <= IMG_DYNAMIC; t++)
		if (!strcmp(s, img_type_name((enum img_type)t)))
			return t;
	cli_usage("--type=%s: keep, dynamic, fixed or raw", s);
}

static void set_verb(struct recv *r, enum verb verb)
{
	if (r->verb && r->verb != verb)
		cli_usage("only one of --token, --status and --abort");
	r->verb = verb;
}

static void set_option(struct recv *r, int opt)
{
	switch (opt) {
	case OPT_ONTO:
		r->onto = true;
		break;
	case OPT_TOKEN:
		set_verb(r, TOKEN);
		break;
	case OPT_STATUS:
		set_verb(r, STATUS);
		break;
	case OPT_ABORT:
		set_verb(r, ABORT);
		break;
	case CLI_JSON:
		r->json = true;
		break;
	case OPT_PARENT:
		r->parent = optarg;
		break;
	case OPT_VERIFY_BASE:
		r->verify_base = true;
		break;
	case OPT_TYPE:
		r->type = parse_type(optarg);
		break;
	case OPT_NEW_UUID:
		r->new_uuid = true;
		break;
	case OPT_VERIFY:
		r->verify = true;
		break;
	case OPT_RECEIPT:
		r->receipt = optarg;
		break;
	case 'f':
		r->force = true;
		break;
	default:
		cli_usage("option %d is not handled", opt);
	}
}

static void parse(struct recv *r, int argc, char **argv)
{
	struct stat st;
	int opt;

	r->type = TYPE_KEEP;
	cli_common_init(&r->common);
	while ((opt = getopt_long(argc, argv, CLI_COMMON_SHORT "f", options, NULL)) != -1)
		if (!cli_common(&r->common, opt, optarg))
			set_option(r, opt);
	if (argc - optind != 1)
		cli_usage(argc == optind ? "which file?" : "one file a stream");
	r->file = argv[optind];
	if (!strcmp(r->file, "-"))
		cli_usage("a disk cannot be written to stdout; name a file (./- is one)");
	r->path = r->file;
	if (r->onto && (r->parent || r->new_uuid))
		cli_usage("--onto goes without --parent and --new-uuid");
	if (r->onto)
		r->parent = r->file;
	if (r->verify_base && !r->parent)
		cli_usage("--verify-base goes with --parent or --onto");
	if (r->parent && r->type != TYPE_KEEP)
		cli_usage("--type is for whole disks; an increment becomes a differencing disk");
	if (r->json && r->verb != STATUS)
		cli_usage("--json goes with --status");
	if (r->verb)
		return;
	if (isatty(STDIN_FILENO))
		cli_usage("stdin is a terminal; it takes a stream of vhd-send");
	/* At the end of a pipe the sender's bar is enough. */
	r->show = r->common.progress_json || (fstat(STDIN_FILENO, &st) == 0 && S_ISREG(st.st_mode));
}

static int show(struct recv *r, struct img_err *err)
{
	if (!r->show)
		return 0; /* the pipe's reader asks for signals */
	if (cli_progress(&r->progress, r->done, r->begin.planned_bytes))
		return img_err_set(err, IMG_AGAIN, "%s: interrupted", r->file);
	return 0;
}

/* By identity, size and, if asked, content: never by name. */
static int check_base_identity(const struct recv *r, struct img_err *err)
{
	static const uint8_t raw[16];
	const struct img_info *p = img_layer_info(r->base, 0);
	char want[IMG_UUID_STR] = "none (raw)", found[IMG_UUID_STR] = "none (raw)";

	if (memcmp(r->begin.base_uuid, raw, 16))
		img_uuid_str(r->begin.base_uuid, want);
	if (p->has_uuid)
		img_uuid_str(p->uuid, found);
	if (strcmp(want, found))
		return img_err_set(err, IMG_DATA,
				   "%s: is not the base of this increment: UUID %s, wanted %s",
				   r->parent, found, want);
	if (p->size != r->begin.base_size)
		return img_err_set(err, IMG_DATA,
				   "%s: is not the base of this increment: %llu bytes, wanted %llu",
				   r->parent, (unsigned long long)p->size,
				   (unsigned long long)r->begin.base_size);
	if (r->begin.kind == STREAM_INCREMENT && r->begin.has_uuid &&
	    !memcmp(r->begin.uuid, r->begin.base_uuid, 16))
		return img_err_set(err, IMG_PROTO, "the stream's disk %s is its own base", want);
	return 0;
}

static int check_base_sum(struct recv *r, struct img_err *err)
{
	struct cli_progress progress;
	char sum[IMG_SUM_STR];
	int rc;

	if (!r->verify_base)
		return 0;
	if (!*r->begin.base_sum)
		return img_err_set(err, IMG_DATA,
				   "the stream does not tell the content sum of its base; send it "
				   "with vhd-send --verify-base");
	cli_progress_start(&progress, &r->common, r->parent);
	rc = img_sum_chain(r->base, cli_progress, &progress, sum, err);
	cli_progress_end(&progress, img_size(r->base));
	if (rc)
		return -1;
	if (strcmp(sum, r->begin.base_sum))
		return img_err_set(err, IMG_DATA,
				   "%s: is not the base of this increment: content sum %s, wanted "
				   "%s; it was changed since",
				   r->parent, sum, r->begin.base_sum);
	return 0;
}

static int open_base(struct recv *r, struct img_err *err)
{
	static const uint8_t raw[16];
	struct img_open opts = r->common.open;
	struct img_err absent = {0};
	struct stat st;

	if (!r->parent) {
		char uuid[IMG_UUID_STR];

		img_uuid_str(r->begin.base_uuid, uuid);
		return img_err_set(err, IMG_USAGE,
				   "the stream is an increment; name its base (UUID %s) here with "
				   "--parent=FILE",
				   uuid);
	}
	opts.raw = !memcmp(r->begin.base_uuid, raw, 16);
	if (img_open(&r->base, r->parent, &opts, err) || check_base_identity(r, err) ||
	    check_base_sum(r, err))
		return -1;
	if (!r->onto && stat(r->file, &st) == 0 && img_find_layer(r->base, r->file, &absent) >= 0)
		return img_err_set(err, IMG_USAGE,
				   "%s: is a part of the base and cannot be replaced", r->file);
	cli_warn_chain(&r->common, r->base);
	if (img_identity(r->base, 0, img_layers(r->base), r->base_id, err))
		return -1;
	r->create.type = IMG_DIFFERENCING;
	r->create.parent_path = r->parent;
	r->create.parent_uuid = r->begin.base_uuid;
	return 0;
}

static int choose_type(struct recv *r, struct img_err *err)
{
	if (r->parent)
		return img_err_set(err, IMG_USAGE,
				   "the stream is a whole disk, it has no parent; leave %s out",
				   r->onto ? "--onto" : "--parent");
	if (r->type != TYPE_KEEP)
		r->create.type = (enum img_type)r->type;
	else
		r->create.type = r->begin.type == IMG_DIFFERENCING ? IMG_DYNAMIC : r->begin.type;
	return 0;
}

/* What no VHD can be is the stream's fault, not the command line's. */
static int check_size(const struct recv *r, struct img_err *err)
{
	const uint64_t size = r->begin.size;

	if (r->create.type == IMG_RAW)
		return 0;
	if (!size || size % SECTOR || size > IMG_VHD_MAX_SIZE)
		return img_err_set(
			err, IMG_DATA,
			"a disk of %llu bytes does not fit a VHD, which has 512 bytes to "
			"2040 GiB in sectors of 512%s",
			(unsigned long long)size, r->parent ? "" : "; receive it with --type=raw");
	return 0;
}

/* Before anything is written. */
static int prepare(struct recv *r, const struct stream_begin *begin, struct img_err *err)
{
	r->begin = *begin;
	r->create.size = begin->size;
	r->create.force = r->force;
	if ((begin->kind == STREAM_WHOLE ? choose_type(r, err) : open_base(r, err)) ||
	    check_size(r, err))
		return -1;
	if (r->create.type == IMG_DYNAMIC || r->create.type == IMG_DIFFERENCING)
		r->create.block_size = begin->block_size;
	r->create.uuid = r->uuid;
	cli_progress_start(&r->progress, &r->common, r->file);
	return 0;
}

static void describe(const struct recv *r, struct partial_head *h)
{
	const struct stream_begin *b = &r->begin;

	memset(h, 0, sizeof(*h));
	memcpy(h->what.stream_id, b->stream_id, 16);
	h->what.compressed = b->compressed;
	h->what.kind = b->kind;
	h->what.size = b->size;
	h->what.has_source = b->has_source;
	memcpy(h->what.source, b->source, sizeof(b->source));
	memcpy(h->what.uuid, b->uuid, 16);
	memcpy(h->what.base_uuid, b->base_uuid, 16);
	h->type = r->create.type;
	h->block_size = r->create.block_size;
	memcpy(h->uuid, r->uuid, 16);
	h->began = (uint64_t)time(NULL);
	h->onto = r->onto;
	memcpy(h->base, r->base_id, sizeof(h->base));
	snprintf(h->parent, sizeof(h->parent), "%s", r->parent && !r->onto ? r->parent : "");
}

static int exists(const struct recv *r, struct img_err *err)
{
	return img_err_set(err, IMG_CANTCREAT, "%s: exists; --force replaces it", r->file);
}

static int on_begin(void *ctx, const struct stream_begin *begin, struct img_err *err)
{
	struct recv *r = ctx;
	struct partial_head head;

	if (r->published && !r->force && !r->onto)
		return exists(r, err);
	if (prepare(r, begin, err))
		return -1;
	/* A difference is from the same disk: its child must be another one. */
	if (begin->has_uuid && !r->new_uuid && begin->kind != STREAM_DIFFERENCE && !r->onto)
		memcpy(r->uuid, begin->uuid, 16);
	else
		img_uuid_new(r->uuid);
	if (!r->partial && partial_open(&r->partial, r->file, PARTIAL_MAKE, err))
		return -1;
	if (partial_mark(r->partial) && !r->common.quiet)
		cli_warn("%s: what was there of it is dropped, the stream begins anew; vhd-send "
			 "--resume goes on",
			 r->file);
	describe(r, &head);
	r->create.partial = partial_image(r->partial);
	if (partial_begin(r->partial, &head, err))
		return -1;
	return img_create_begin(&r->new, r->path, &r->create, err);
}

/* The same stream, and the same wishes as when it was begun? */
static int check_partial(struct recv *r, const struct stream_begin *begin, struct img_err *err)
{
	const struct partial_head *h;

	if (!r->partial || !partial_mark(r->partial))
		return img_err_set(err, IMG_AGAIN,
				   "%s: nothing is there to go on with; ask for the token again",
				   r->file);
	h = partial_get(r->partial);
	if (memcmp(h->what.stream_id, begin->stream_id, 16))
		return img_err_set(err, IMG_AGAIN,
				   "%s: what is there is of another stream; ask for the token again",
				   r->file);
	if (h->onto != r->onto || strcmp(h->parent, r->parent && !r->onto ? r->parent : ""))
		return img_err_set(err, IMG_USAGE, "%s: was begun with %s%s", r->file,
				   h->onto     ? "--onto"
				   : *h->parent ? "--parent="
						: "neither --parent nor --onto",
				   h->parent);
	if (h->what.size != begin->size || h->what.kind != begin->kind)
		return img_err_set(err, IMG_PROTO, "the stream goes on as one of another disk");
	return 0;
}

static int on_resume(void *ctx, const struct stream_begin *begin, struct stream_mark *mark,
		     struct img_sum *content, struct img_err *err)
{
	struct recv *r = ctx;
	const struct partial_head *h;

	if ((!r->partial && partial_open(&r->partial, r->file, PARTIAL_FIND, err)) ||
	    check_partial(r, begin, err))
		return -1;
	h = partial_get(r->partial);
	if (partial_is_applied(r->partial)) {
		/*
		 * FILE opens below its child only: there is nothing to prepare, the merge looks
		 * itself.
		 */
		r->begin = *begin;
		r->create.type = h->type;
		cli_progress_start(&r->progress, &r->common, r->file);
	} else if (prepare(r, begin, err)) {
		return -1;
	}
	if (r->onto && !partial_is_applied(r->partial) && memcmp(h->base, r->base_id, sizeof(h->base)))
		return img_err_set(err, IMG_DATA,
				   "%s: was written to since the first part was received; "
				   "vhd-recv --abort drops that",
				   r->file);
	if (r->type != TYPE_KEEP && h->type != r->create.type)
		return img_err_set(err, IMG_USAGE, "%s: was begun with --type=%s", r->file,
				   img_type_name(h->type));
	r->create.type = h->type;
	r->create.block_size = h->block_size;
	memcpy(r->uuid, h->uuid, 16);
	*mark = *partial_mark(r->partial);
	r->published = partial_is_published(r->partial);
	if (partial_resume(r->partial, content, err))
		return -1;
	r->done = mark->data_bytes;
	r->create.partial = partial_image(r->partial);
	if (r->published)
		return 0;
	return img_create_resume(&r->new, r->path, &r->create, mark->off, partial_end(r->partial),
				 err);
}

static void on_chunks(void *ctx, uint64_t first, uint64_t n, const uint8_t sum[IMG_SUM_BYTES])
{
	partial_chunks(((struct recv *)ctx)->partial, first, n, sum);
}

static int on_mark(void *ctx, const struct stream_mark *mark, struct img_err *err)
{
	struct recv *r = ctx;

	if (r->published)
		return 0;
	return partial_set_mark(r->partial, r->new, mark, mark->off == r->begin.size, err);
}

static int on_data(void *ctx, uint64_t off, const void *buf, size_t len, struct img_err *err)
{
	struct recv *r = ctx;

	if (!r->new)
		return img_err_set(err, IMG_PROTO, "data behind the end of the disk");
	if (img_write(img_new_chain(r->new), buf, off, len, false, err))
		return -1;
	r->done += len;
	r->unwritten += len;
	if (r->unwritten >= WRITEBACK) {
		r->unwritten = 0;
		img_writeback(img_new_chain(r->new));
	}
	return show(r, err);
}

/* A new file without a parent reads as zeros wherever nothing was written; a child must say so. */
static int on_zero(void *ctx, uint64_t off, uint64_t len, struct img_err *err)
{
	struct recv *r = ctx;

	if (!r->new)
		return img_err_set(err, IMG_PROTO, "zeros behind the end of the disk");
	return r->create.type == IMG_DIFFERENCING
		       ? img_zero(img_new_chain(r->new), off, len, false, err)
		       : 0;
}

/* A child must also find its parent from where it is now, which was named by the user. */
static int verify(struct recv *r, struct img_err *err)
{
	const struct img_open *common = &r->common.open;
	const char *dirs[sizeof(r->common.dirs) / sizeof(r->common.dirs[0]) + 1];
	struct img_open opts = *common;
	struct cli_progress progress;
	char *dir = NULL;
	int rc;

	opts.raw = r->create.type == IMG_RAW;
	if (r->base) {
		dir = io_dirname(img_layer_real(r->base, 0));
		if (!dir)
			return img_err_errno(err, ENOMEM, "%s", r->file);
		if (common->nparent_dirs)
			memcpy(dirs, common->parent_dirs, common->nparent_dirs * sizeof(dirs[0]));
		dirs[opts.nparent_dirs++] = dir;
		opts.parent_dirs = dirs;
	}
	cli_progress_start(&progress, &r->common, "verify");
	rc = readback_check(r->new ? img_layer_real(img_new_chain(r->new), 0) : r->path, &opts,
			    &r->begin, &r->totals, &progress, err);
	cli_progress_end(&progress, r->begin.size);
	free(dir);
	return rc;
}

/* The child is whole: now it is merged, which may be interrupted and done again at any point. */
static int apply(struct recv *r, struct img_err *err)
{
	struct img_open opts = r->common.open;
	struct cli_progress progress;
	const struct img_merge merge = {.open = &opts, .progress = cli_progress, .ctx = &progress};
	struct img_merge_stats stats;
	struct img_chain *c = NULL;
	uint8_t id[IMG_SUM_BYTES];
	int rc = -1;

	img_close(r->base);
	r->base = NULL;
	opts.writable = opts.merge = true;
	cli_progress_start(&progress, &r->common, "merge");
	if (img_open(&c, r->path, &opts, err))
		goto out;
	/* Since the locks of the base were given up. */
	if (img_identity(c, 1, img_layers(c), id, err))
		goto out;
	if (!partial_is_applied(r->partial) && memcmp(id, r->base_id, sizeof(id))) {
		img_err_set(err, IMG_AGAIN, "%s: was written to by somebody else just now", r->file);
		goto out;
	}
	if (!partial_is_applied(r->partial) && img_merge_plan(c, &merge, &stats, err))
		goto out;
	if (partial_apply(r->partial, err) || img_merge(c, &merge, &stats, err))
		goto out;
	rc = partial_done(r->partial, err);
out:
	cli_progress_end(&progress, 0);
	img_close(c);
	return rc;
}

/* An earlier run may have removed it already. */
static int drop_child(struct recv *r, struct img_err *err)
{
	struct stat st;

	return lstat(r->path, &st) == 0 ? io_unlink(r->path, err) : 0;
}

/* Of FILE, for the receipt. */
static int tell_uuid(struct recv *r, struct img_err *err)
{
	struct img_open opts = r->common.open;
	struct img_chain *c = NULL;

	opts.maybe_raw = opts.single = true;
	if (img_open(&c, r->file, &opts, err))
		return -1;
	r->base_has_uuid = img_layer_info(c, 0)->has_uuid;
	memcpy(r->base_uuid, img_layer_info(c, 0)->uuid, 16);
	img_close(c);
	return 0;
}

/* Everything was verified as it came; now it becomes a disk. */
static int finish(struct recv *r, struct img_err *err)
{
	struct img_new *new = r->new;

	if (r->verify && !(r->onto && partial_is_done(r->partial))) {
		if ((new && img_create_complete(new, err)) || verify(r, err)) {
			r->worthless = err->code == IMG_IO;
			return -1;
		}
	}
	r->new = NULL;
	if (new && img_create_finish(new, err))
		return -1;
	if (r->onto && !partial_is_done(r->partial) && apply(r, err))
		return -1;
	return r->onto ? drop_child(r, err) || tell_uuid(r, err) : 0;
}

static int report(struct recv *r, struct img_err *err)
{
	struct receipt receipt = {.file = r->file,
				  .parent = r->onto ? NULL : r->parent,
				  .begin = &r->begin,
				  .totals = &r->totals,
				  .verified = r->verify};
	char *text;
	int rc = 0;

	if (r->onto && r->base_has_uuid)
		receipt.uuid = r->base_uuid;
	else if (!r->onto && r->create.type != IMG_RAW)
		receipt.uuid = r->uuid;
	text = receipt_json(&receipt);
	if (!text)
		return img_err_errno(err, ENOMEM, "%s", r->file);
	if (fputs(text, stdout) < 0 || fflush(stdout))
		rc = img_err_errno(err, errno == ENOSPC ? EIO : errno, "standard output");
	if (r->receipt && !rc)
		rc = receipt_store(r->receipt, text, err);
	free(text);
	return rc;
}

static int receive(struct recv *r, struct img_err *err)
{
	const struct stream_pipe from = {
		.fd = STDIN_FILENO, .name = "standard input", .stop = cli_interrupted};
	const struct stream_visitor visitor = {.ctx = r,
					       .begin = on_begin,
					       .data = on_data,
					       .zero = on_zero,
					       .mark = on_mark,
					       .chunks = on_chunks,
					       .resume = on_resume};
	struct stat st;

	/* Before the work, not after it: the receipt needs somewhere to go. And no file may get
	 * a standard stream's number. */
	if (!cli_usable(STDIN_FILENO) || !cli_usable(STDOUT_FILENO))
		return img_err_set(err, IMG_IO, "standard input or standard output is closed");
	if (r->onto && !(r->path = r->child = partial_child(r->file)))
		return img_err_errno(err, ENOMEM, "%s", r->file);
	if (!r->onto && !r->force && lstat(r->file, &st) == 0) {
		/* Unless it is what an earlier run made, and was killed before it said so. */
		if (partial_open(&r->partial, r->file, PARTIAL_FIND, err))
			return -1;
		r->published = r->partial && partial_is_published(r->partial);
		/* The sender may be waiting for its token, in this very pipe. */
		partial_close(r->partial);
		r->partial = NULL;
		if (!r->published)
			return exists(r, err);
	}
	if (r->receipt && receipt_check(r->receipt, r->force, err))
		return -1;
	if (stream_read(&from, &visitor, &r->totals, err))
		return -1;
	if (r->show)
		cli_progress_end(&r->progress, r->done);
	return finish(r, err);
}

/* What was made durable stays, all else goes. */
static void clean_up(struct recv *r)
{
	struct img_err ignored = {0};

	if (!r->partial) {
		img_create_abort(r->new);
		return;
	}
	(void)partial_wait(r->partial, &ignored);
	if (!partial_mark(r->partial) || r->worthless) {
		img_create_abort(r->new);
		(void)partial_remove(r->partial, true, &ignored);
	} else {
		img_create_keep(r->new);
		r->kept = true;
	}
	r->new = NULL;
}

static void tell_kept(const struct recv *r)
{
	char at[32], size[32];

	cli_warn("%s: %s of %s are kept; vhd-send --resume=\"$(vhd-recv --token FILE)\" goes on, "
		 "vhd-recv --abort FILE drops it",
		 r->file, cli_human(partial_mark(r->partial)->off, at),
		 cli_human(partial_get(r->partial)->what.size, size));
}

static void print_status(const struct recv *r, const struct partial *p)
{
	const struct stream_mark *m = p ? partial_mark(p) : NULL;
	char token[STREAM_TOKEN_STR], uuid[IMG_UUID_STR], a[32], b[32];
	const char *state = p && partial_in_use(p) ? "receiving" : m ? "partial" : "none";
	const struct partial_head *h = p ? partial_get(p) : NULL;

	if (!r->json && !m)
		printf("%s: %s\n", r->file,
		       p && partial_in_use(p) ? "being received, nothing is durable yet"
					      : "nothing of it is here");
	if (!r->json && m)
		printf("%s: %s of %s are here%s\n", r->file, cli_human(m->off, a),
		       cli_human(h->what.size, b),
		       partial_in_use(p) ? ", and it is being received" : "");
	if (!r->json)
		return;
	fputs("{\"version\":1,\"file\":", stdout);
	cli_json_string(stdout, r->file);
	printf(",\"state\":\"%s\"", state);
	if (m) {
		img_uuid_str(h->uuid, uuid);
		partial_token(p, token);
		printf(",\"kind\":\"%s\",\"type\":\"%s\",\"uuid\":\"%s\",\"size\":%" PRIu64
		       ",\"offset\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"began\":%" PRIu64
		       ",\"time\":%" PRIu64 ",\"parent\":",
		       h->what.kind == STREAM_WHOLE ? "whole" : "increment", img_type_name(h->type),
		       uuid, h->what.size, m->off, m->wire_bytes, h->began, partial_time(p));
		if (*h->parent)
			cli_json_string(stdout, h->parent);
		else
			fputs("null", stdout);
		printf(",\"token\":\"%s\"", token);
	}
	fputs("}\n", stdout);
}

static int manage(struct recv *r, struct img_err *err)
{
	char token[STREAM_TOKEN_STR];
	struct partial *p = NULL;
	bool published;
	int rc;

	if (partial_open(&p, r->file, r->verb == STATUS ? PARTIAL_PEEK : PARTIAL_FIND, err))
		return -1;
	if (r->verb == STATUS)
		print_status(r, p);
	if (r->verb == TOKEN && p && partial_mark(p)) {
		partial_token(p, token);
		puts(token);
	}
	published = p && partial_is_published(p) && !partial_get(p)->onto;
	if (r->verb == ABORT && p && partial_is_applied(p) && !partial_is_done(p)) {
		img_err_set(err, IMG_DATA,
			    "%s: all has come and is being merged into it; the command that received "
			    "it finishes that, or vhd-merge --delete %s",
			    r->file, partial_final(p));
		partial_close(p);
		return -1;
	}
	rc = r->verb == ABORT && p ? partial_remove(p, !published, err) : 0;
	partial_close(p);
	return rc;
}

static int work(struct recv *r, struct img_err *err)
{
	struct img_err ignored = {0};
	int rc = receive(r, err);

	if (rc) {
		clean_up(r);
		return -1;
	}
	/* While the receipt was not given the same command can ask for it again. */
	rc = report(r, err);
	if (!rc)
		(void)partial_remove(r->partial, false, &ignored);
	return rc;
}

int main(int argc, char **argv)
{
	struct recv r = {0};
	struct img_err err = {0};
	int rc;

	cli_init(argv, "vhd-recv", help);
	parse(&r, argc, argv);
	cli_catch_signals();
	rc = r.verb ? manage(&r, &err) : work(&r, &err);
	if (rc)
		rc = cli_fail(&err);
	if (r.kept)
		tell_kept(&r);
	partial_close(r.partial);
	img_close(r.base);
	free(r.child);
	return cli_exit(rc);
}
