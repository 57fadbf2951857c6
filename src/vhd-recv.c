/* SPDX-License-Identifier: BSD-2-Clause */
/* A stream on stdin becomes a disk, or nothing does. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bytes.h"
#include "cli.h"
#include "io.h"
#include "readback.h"
#include "receipt.h"
#include "stream.h"

static const char help[] =
	"Usage: vhd-recv [OPTION]... FILE < STREAM\n"
	"Makes FILE out of a stream of vhd-send: a whole disk, or with --parent the AVHD that an\n"
	"increment is. FILE appears only when everything arrived and is durable. The receipt, one\n"
	"line of JSON, goes to stdout.\n"
	"\n"
	"      --parent=FILE       the base of an increment; FILE becomes its child\n"
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
	"      --progress=json     progress as JSON lines on stderr\n"
	"  -q, --quiet             no progress\n"
	"  -h, --help\n"
	"  -V, --version\n";

enum { TYPE_KEEP = -1 };

/* The disk works while the stream comes in, instead of all at the end. */
enum { WRITEBACK = 16 << 20 };

struct recv {
	struct cli_common common;
	const char *file, *parent, *receipt;
	bool verify_base, new_uuid, verify, force;
	int type; /* enum img_type or TYPE_KEEP */
	struct img_chain *base;
	struct stream_begin begin;
	struct stream_totals totals;
	struct img_create create;
	uint8_t uuid[16];
	struct img_new *new;
	struct readback *readback;
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

static void set_option(struct recv *r, int opt)
{
	switch (opt) {
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
	if (r->verify_base && !r->parent)
		cli_usage("--verify-base goes with --parent");
	if (r->parent && r->type != TYPE_KEEP)
		cli_usage("--type is for whole disks; an increment becomes a differencing disk");
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
	if (r->begin.has_uuid && !memcmp(r->begin.uuid, r->begin.base_uuid, 16))
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
	if (stat(r->file, &st) == 0 && img_find_layer(r->base, r->file, &absent) >= 0)
		return img_err_set(err, IMG_USAGE,
				   "%s: is a part of the base and cannot be replaced", r->file);
	cli_warn_chain(&r->common, r->base);
	r->create.type = IMG_DIFFERENCING;
	r->create.parent_path = r->parent;
	r->create.parent_uuid = r->begin.base_uuid;
	return 0;
}

static int choose_type(struct recv *r, struct img_err *err)
{
	if (r->parent)
		return img_err_set(
			err, IMG_USAGE,
			"the stream is a whole disk, it has no parent; leave --parent out");
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

static int on_begin(void *ctx, const struct stream_begin *begin, struct img_err *err)
{
	struct recv *r = ctx;

	r->begin = *begin;
	r->create.size = begin->size;
	r->create.force = r->force;
	if ((begin->kind == STREAM_INCREMENT ? open_base(r, err) : choose_type(r, err)) ||
	    check_size(r, err))
		return -1;
	if (r->create.type == IMG_DYNAMIC || r->create.type == IMG_DIFFERENCING)
		r->create.block_size = begin->block_size;
	if (begin->has_uuid && !r->new_uuid)
		memcpy(r->uuid, begin->uuid, 16);
	else
		img_uuid_new(r->uuid);
	r->create.uuid = r->uuid;
	if (r->verify && !(r->readback = readback_new(begin->size, err)))
		return -1;
	cli_progress_start(&r->progress, &r->common, r->file);
	return img_create_begin(&r->new, r->file, &r->create, err);
}

static int on_data(void *ctx, uint64_t off, const void *buf, size_t len, struct img_err *err)
{
	struct recv *r = ctx;

	if (img_write(img_new_chain(r->new), buf, off, len, false, err))
		return -1;
	if (r->readback)
		readback_add(r->readback, buf, off, len);
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

	if (r->readback)
		readback_add(r->readback, NULL, off, len);
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
	rc = readback_check(r->readback, img_layer_real(img_new_chain(r->new), 0), &opts, &progress,
			    err);
	cli_progress_end(&progress, r->begin.size);
	free(dir);
	return rc;
}

/* Everything was verified as it came; now it becomes a disk. */
static int finish(struct recv *r, struct img_err *err)
{
	struct img_new *new = r->new;

	if (r->readback && (img_create_complete(new, err) || verify(r, err)))
		return -1;
	r->new = NULL;
	return img_create_finish(new, err);
}

static int report(struct recv *r, struct img_err *err)
{
	struct receipt receipt = {.file = r->file,
				  .parent = r->parent,
				  .begin = &r->begin,
				  .totals = &r->totals,
				  .verified = r->verify};
	char *text;
	int rc = 0;

	if (r->create.type != IMG_RAW)
		receipt.uuid = r->uuid;
	text = receipt_json(&receipt);
	if (!text)
		return img_err_errno(err, ENOMEM, "%s", r->file);
	fputs(text, stdout);
	if (r->receipt)
		rc = receipt_store(r->receipt, text, err);
	free(text);
	return rc;
}

static int receive(struct recv *r, struct img_err *err)
{
	const struct stream_pipe from = {
		.fd = STDIN_FILENO, .name = "standard input", .stop = cli_interrupted};
	const struct stream_visitor visitor = {
		.ctx = r, .begin = on_begin, .data = on_data, .zero = on_zero};
	struct stat st;

	/* Before the work, not after it: the receipt needs somewhere to go. And no file may get
	 * a standard stream's number. */
	if (!cli_usable(STDIN_FILENO) || !cli_usable(STDOUT_FILENO))
		return img_err_set(err, IMG_IO, "standard input or standard output is closed");
	if (!r->force && lstat(r->file, &st) == 0)
		return img_err_set(err, IMG_CANTCREAT, "%s: exists; --force replaces it", r->file);
	if (r->receipt && receipt_check(r->receipt, r->force, err))
		return -1;
	if (stream_read(&from, &visitor, &r->totals, err))
		return -1;
	if (r->show)
		cli_progress_end(&r->progress, r->done);
	return finish(r, err);
}

int main(int argc, char **argv)
{
	struct recv r = {0};
	struct img_err err = {0};
	int rc;

	cli_init(argv, "vhd-recv", help);
	parse(&r, argc, argv);
	cli_catch_signals();
	rc = receive(&r, &err);
	img_create_abort(r.new);
	if (!rc)
		rc = report(&r, &err);
	readback_free(r.readback);
	img_close(r.base);
	return cli_exit(rc ? cli_fail(&err) : 0);
}
