/* SPDX-License-Identifier: BSD-2-Clause */
/* What the guest sees of a chain, or of its upper layers, as a stream on stdout. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "cli.h"
#include "receipt.h"
#include "stream.h"

static const char help[] =
	"Usage: vhd-send [OPTION]... DISK > STREAM\n"
	"       vhd-send [OPTION]... DISK | ssh HOST vhd-recv FILE\n"
	"Sends what the guest sees of DISK and its parents as a stream (vhd-stream(5)) on stdout.\n"
	"\n"
	"      --from=ANCESTOR     only what lies above ANCESTOR, a parent in DISK's chain\n"
	"      --verify-base       read ANCESTOR and send its content sum along\n"
	"      --compress[=LEVEL]  compress with zstd where it pays (level 1 to 19; default 1)\n"
	"      --rate-limit=RATE   at most RATE bytes a second (10M, 100mbit)\n"
	"      --receipt=FILE      identity, sums and counts of what was sent, in JSON\n"
	"      --raw               DISK is a raw disk\n"
	"  -n, --dry-run[=map]     only say what would be sent, exactly; =map: at most, without\n"
	"                          reading data\n"
	"      --json              the dry run's answer in JSON\n"
	"  -f, --force             replace an existing receipt\n"
	"      --parent-dir=DIR    parents may lie below DIR too (repeatable)\n"
	"      --parent-anywhere   parents may lie anywhere\n"
	"      --progress=json     progress as JSON lines on stderr\n"
	"  -q, --quiet             no progress\n"
	"  -h, --help\n"
	"  -V, --version\n";

enum { DRY_NO, DRY_EXACT, DRY_MAP };

struct send {
	struct cli_common common;
	const char *disk, *from, *receipt;
	bool verify_base, json, force;
	int dry, level;
	uint64_t rate;
	struct img_chain *chain;
	unsigned base; /* the first layer that is not sent */
	struct stream_begin begin;
	struct stream_writer *writer; /* NULL: planning, nothing is read */
	struct stream_totals totals;
	struct cli_progress progress;
	uint64_t done;
	/* data that is contiguous for the guest, wherever it lies */
	uint64_t piece_off;
	size_t piece_len;
	uint8_t *piece;
};

enum { OPT_FROM = CLI_TOOL, OPT_VERIFY_BASE, OPT_COMPRESS, OPT_RATE, OPT_RECEIPT, OPT_RAW };

static const struct option options[] = {
	CLI_COMMON_LONG,
	CLI_CHAIN_LONG,
	{"from", required_argument, NULL, OPT_FROM},
	{"verify-base", no_argument, NULL, OPT_VERIFY_BASE},
	{"compress", optional_argument, NULL, OPT_COMPRESS},
	{"rate-limit", required_argument, NULL, OPT_RATE},
	{"receipt", required_argument, NULL, OPT_RECEIPT},
	{"raw", no_argument, NULL, OPT_RAW},
	{"dry-run", optional_argument, NULL, 'n'},
	{"json", no_argument, NULL, CLI_JSON},
	{"force", no_argument, NULL, 'f'},
	{NULL, 0, NULL, 0},
};

static int parse_level(const char *s)
{
	char *end;
	long v;

	if (!s)
		return 1;
	v = strtol(s, &end, 10);
	if (end == s || *end || v < 1 || v > 19)
		cli_usage("--compress=%s: a level is 1 to 19", s);
	return (int)v;
}

static void set_option(struct send *s, int opt)
{
	switch (opt) {
	case OPT_FROM:
		s->from = optarg;
		break;
	case OPT_VERIFY_BASE:
		s->verify_base = true;
		break;
	case OPT_COMPRESS:
		s->level = parse_level(optarg);
		break;
	case OPT_RATE:
		if (!cli_rate(optarg, &s->rate) || !s->rate)
			cli_usage("--rate-limit=%s: not a rate", optarg);
		break;
	case OPT_RECEIPT:
		s->receipt = optarg;
		break;
	case OPT_RAW:
		s->common.open.raw = true;
		break;
	case 'n':
		if (optarg && strcmp(optarg, "map"))
			cli_usage("--dry-run=%s: only =map is known", optarg);
		s->dry = optarg ? DRY_MAP : DRY_EXACT;
		break;
	case CLI_JSON:
		s->json = true;
		break;
	case 'f':
		s->force = true;
		break;
	default:
		cli_usage("option %d is not handled", opt);
	}
}

static void parse(struct send *s, int argc, char **argv)
{
	int opt;

	cli_common_init(&s->common);
	while ((opt = getopt_long(argc, argv, CLI_COMMON_SHORT "nf", options, NULL)) != -1)
		if (!cli_common(&s->common, opt, optarg))
			set_option(s, opt);
	if (argc - optind != 1)
		cli_usage(argc == optind ? "which disk?" : "one disk a stream");
	s->disk = argv[optind];
	if (s->verify_base && !s->from)
		cli_usage("--verify-base goes with --from");
	if (s->json && !s->dry)
		cli_usage("--json goes with --dry-run; --receipt=FILE reports on a stream");
	if (s->receipt && s->dry)
		cli_usage("a dry run has no receipt");
	if (!s->dry && isatty(STDOUT_FILENO))
		cli_usage("stdout is a terminal; send into a pipe or a file");
}

static int describe_base(struct send *s, struct img_err *err)
{
	const struct img_info *base;
	struct img_open opts = s->common.open;
	struct img_chain *c = NULL;
	int layer = img_find_layer(s->chain, s->from, err);
	int rc = 0;

	if (layer < 0)
		return img_err_set(err, IMG_DATA, "%s: is not in the chain of %s", s->from,
				   s->disk);
	if (layer == 0)
		return img_err_set(err, IMG_USAGE, "%s: nothing lies between it and %s", s->from,
				   s->disk);
	s->base = (unsigned)layer;
	base = img_layer_info(s->chain, s->base);
	s->begin.kind = STREAM_INCREMENT;
	s->begin.base_size = base->size;
	if (base->has_uuid)
		memcpy(s->begin.base_uuid, base->uuid, 16);
	if (!s->verify_base)
		return 0;
	opts.raw = base->type == IMG_RAW;
	cli_progress_start(&s->progress, &s->common, "base");
	if (img_open(&c, img_layer_path(s->chain, s->base), &opts, err) ||
	    img_sum_chain(c, cli_progress, &s->progress, s->begin.base_sum, err))
		rc = -1;
	cli_progress_end(&s->progress, rc ? 0 : img_size(c));
	img_close(c);
	return rc;
}

static int describe(struct send *s, struct img_err *err)
{
	const struct img_info *leaf = img_layer_info(s->chain, 0);
	struct stream_begin *b = &s->begin;

	b->size = img_size(s->chain);
	b->type = leaf->type;
	b->has_uuid = leaf->has_uuid;
	memcpy(b->uuid, leaf->uuid, 16);
	b->has_parent = leaf->has_parent;
	memcpy(b->parent_uuid, leaf->parent_uuid, 16);
	b->block_size = leaf->block_size;
	b->cylinders = leaf->cylinders;
	b->heads = leaf->heads;
	b->sectors = leaf->sectors;
	memcpy(b->creator, leaf->creator, sizeof(b->creator));
	b->creator_version = leaf->creator_version;
	b->timestamp = leaf->timestamp;
	s->base = img_layers(s->chain);
	return s->from ? describe_base(s, err) : 0;
}

static int end_piece(struct send *s, struct img_err *err)
{
	size_t len = s->piece_len;

	if (!len)
		return 0;
	s->piece_len = 0;
	if (!s->writer) {
		s->begin.planned_bytes += len;
		s->begin.planned_records++;
		return 0;
	}
	if (stream_write_data(s->writer, s->piece_off, s->piece, len, err))
		return -1;
	s->done += len;
	if (cli_progress(&s->progress, s->done, s->begin.planned_bytes))
		return img_err_set(err, IMG_AGAIN, "interrupted");
	return 0;
}

static int add_run(struct send *s, struct img_run run, struct img_err *err)
{
	while (run.len) {
		struct img_run part = run;
		uint64_t room;

		if (!s->piece_len) {
			s->piece_off = run.off;
			if (s->writer &&
			    stream_write_space(s->writer, STREAM_PIECE, &s->piece, err))
				return -1;
		}
		room = STREAM_PIECE - run.off % STREAM_PIECE;
		part.len = u64_min(run.len, room);
		if (s->writer && img_read_run(s->chain, &part, s->piece + s->piece_len, err))
			return -1;
		s->piece_len += (size_t)part.len;
		run.off += part.len;
		run.file_off += part.len;
		run.len -= part.len;
		if (part.len == room && end_piece(s, err))
			return -1;
	}
	return 0;
}

/* The whole disk, piece by piece: into the stream, or without a writer only counted. */
static int walk(struct send *s, struct img_err *err)
{
	struct img_run run;

	for (uint64_t off = 0; off < s->begin.size; off += run.len) {
		if (img_map(s->chain, off, s->begin.size - off, s->base, &run, err))
			return -1;
		if (run.kind == IMG_DATA_RUN) {
			if (add_run(s, run, err))
				return -1;
			continue;
		}
		if (end_piece(s, err))
			return -1;
		if (run.kind == IMG_BELOW_RUN)
			continue;
		if (!s->writer)
			s->begin.planned_records++;
		else if (stream_write_zero(s->writer, run.off, run.len, err))
			return -1;
		if (cli_interrupted())
			return img_err_set(err, IMG_AGAIN, "interrupted");
	}
	return end_piece(s, err);
}

static int report_dry(const struct send *s, struct img_err *err)
{
	const struct stream_totals *t = &s->totals;
	const bool exact = s->dry == DRY_EXACT;
	uint64_t bytes = exact ? t->wire_bytes : stream_bound(&s->begin);
	uint64_t data = exact ? t->data_bytes : s->begin.planned_bytes;
	/* BEGIN and END count too */
	uint64_t records = exact ? t->records : s->begin.planned_records + 2;
	struct stream_totals without_id = *t;
	struct receipt r = {
		.file = s->disk, .parent = s->from, .begin = &s->begin, .totals = &without_id};
	char human[32], *text;

	if (!s->json) {
		printf("%s%" PRIu64 " bytes (%s) in %" PRIu64 " records, %" PRIu64
		       " of them data\n",
		       exact ? "" : "at most ", bytes, cli_human(bytes, human), records, data);
		return 0;
	}
	if (!exact) {
		printf("{\"version\":1,\"exact\":false,\"kind\":\"%s\",\"size\":%" PRIu64
		       ",\"bytes\":%" PRIu64 ",\"records\":%" PRIu64 ",\"data_bytes\":%" PRIu64
		       "}\n",
		       s->from ? "increment" : "whole", s->begin.size, bytes, records, data);
		return 0;
	}
	r.uuid = s->begin.has_uuid ? s->begin.uuid : NULL;
	without_id.stream_sum[0] = '\0'; /* the real stream has another id */
	text = receipt_json(&r);
	if (!text)
		return img_err_errno(err, ENOMEM, "%s", s->disk);
	fputs(text, stdout);
	free(text);
	return 0;
}

static int report(const struct send *s, struct img_err *err)
{
	struct receipt r = {
		.file = s->disk, .parent = s->from, .begin = &s->begin, .totals = &s->totals};
	char *text;
	int rc;

	if (!s->receipt)
		return 0;
	r.uuid = s->begin.has_uuid ? s->begin.uuid : NULL;
	text = receipt_json(&r);
	if (!text)
		return img_err_errno(err, ENOMEM, "%s", s->receipt);
	rc = receipt_store(s->receipt, text, err);
	free(text);
	return rc;
}

static int send_all(struct send *s, struct img_err *err)
{
	struct stream_pipe to = {.fd = s->dry ? -1 : STDOUT_FILENO,
				 .name = "standard output",
				 .stop = cli_interrupted,
				 .rate = s->rate};

	if (walk(s, err))
		return -1;
	if (s->dry == DRY_MAP)
		return report_dry(s, err);
	cli_progress_start(&s->progress, &s->common, s->disk);
	if (stream_write_begin(&s->writer, &to, s->level, &s->begin, err))
		return -1;
	if (walk(s, err) || stream_write_end(s->writer, &s->totals, err)) {
		stream_write_abort(s->writer, err);
		return -1;
	}
	cli_progress_end(&s->progress, s->done);
	return s->dry ? report_dry(s, err) : report(s, err);
}

int main(int argc, char **argv)
{
	struct send s = {0};
	struct img_err err = {0};
	int rc = -1;

	cli_init(argv, "vhd-send", help);
	parse(&s, argc, argv);
	cli_catch_signals();
	if (!cli_usable(STDOUT_FILENO)) {
		img_err_set(&err, IMG_IO, "standard output is closed");
		goto out;
	}
	if (s.receipt && receipt_check(s.receipt, s.force, &err))
		goto out;
	if (img_open(&s.chain, s.disk, &s.common.open, &err) || describe(&s, &err))
		goto out;
	cli_warn_chain(&s.common, s.chain);
	rc = send_all(&s, &err);
out:
	stream_writer_free(s.writer);
	img_close(s.chain);
	return cli_exit(rc ? cli_fail(&err) : 0);
}
