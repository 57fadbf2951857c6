/* SPDX-License-Identifier: BSD-2-Clause */
/* What the guest sees of a chain, or of its upper layers, as a stream on stdout. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "against.h"
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
	"      --against=SUMS      only what differs from a stale copy, whose vhd-sum --blocks this is\n"
	"      --verify-base       read ANCESTOR and send its content sum along\n"
	"      --compress[=LEVEL]  compress with zstd where it pays (level 1 to 19; default 1)\n"
	"      --threads=N         that many threads compress (1 to 8; default: one for each core)\n"
	"      --rate-limit=RATE   at most RATE bytes a second (10M, 100mbit)\n"
	"      --resume=TOKEN      go on where vhd-recv --token says; empty: from the start\n"
	"      --rate-file=FILE    the same as FILE says, read again at SIGHUP; 0: no limit\n"
	"      --checkpoint=SIZE   a place to go on after every SIZE bytes (at most 256M)\n"
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
	unsigned threads;
	uint64_t rate, checkpoint;
	const char *rate_file, *sums;
	struct against *against;
	struct img_chain *chain;
	unsigned base; /* the first layer that is not sent */
	struct stream_begin begin;
	const char *resume; /* NULL: from the start */
	struct stream_token token;
	struct stream_writer *writer; /* NULL: planning, nothing is read */
	struct stream_totals totals;
	struct cli_progress progress;
	struct img_sums *kept; /* of what is read */
	uint64_t done;
	/* data that is contiguous for the guest, wherever it lies */
	uint64_t piece_off;
	size_t piece_len;
	uint8_t *piece;
};

enum { OPT_FROM = CLI_TOOL, OPT_VERIFY_BASE, OPT_COMPRESS, OPT_THREADS, OPT_RATE, OPT_RECEIPT, OPT_RAW, OPT_RESUME, OPT_CHECKPOINT, OPT_RATE_FILE, OPT_AGAINST };

static const struct option options[] = {
	CLI_COMMON_LONG,
	CLI_CHAIN_LONG,
	{"from", required_argument, NULL, OPT_FROM},
	{"verify-base", no_argument, NULL, OPT_VERIFY_BASE},
	{"compress", optional_argument, NULL, OPT_COMPRESS},
	{"threads", required_argument, NULL, OPT_THREADS},
	{"rate-limit", required_argument, NULL, OPT_RATE},
	{"rate-file", required_argument, NULL, OPT_RATE_FILE},
	{"against", required_argument, NULL, OPT_AGAINST},
	{"receipt", required_argument, NULL, OPT_RECEIPT},
	{"raw", no_argument, NULL, OPT_RAW},
	{"checkpoint", required_argument, NULL, OPT_CHECKPOINT},
	{"resume", required_argument, NULL, OPT_RESUME},
	{"dry-run", optional_argument, NULL, 'n'},
	{"json", no_argument, NULL, CLI_JSON},
	{"force", no_argument, NULL, 'f'},
	{NULL, 0, NULL, 0},
};

static volatile sig_atomic_t reread_rate;
static const char *rate_file;
static uint64_t rate_now;

static void on_hup(int sig)
{
	(void)sig;
	reread_rate = 1;
}

static int read_rate(struct img_err *err)
{
	char line[64] = "";
	FILE *f = fopen(rate_file, "re");
	uint64_t rate = 0;

	if (!f)
		return img_err_errno(err, errno, "%s", rate_file);
	if (!fgets(line, sizeof(line), f))
		line[0] = '\0';
	fclose(f);
	line[strcspn(line, " \t\r\n")] = '\0';
	if (strcmp(line, "0") != 0 && !cli_rate(line, &rate))
		return img_err_set(err, IMG_USAGE, "%s: '%s' is not a rate", rate_file, line);
	rate_now = rate;
	return 0;
}

/* Asked before each write and while waiting. A rate that cannot be read leaves the old one. */
static bool stop(void)
{
	struct img_err err = {0};

	if (reread_rate) {
		reread_rate = 0;
		if (read_rate(&err))
			cli_warn("%s; the rate stays as it is", err.msg);
	}
	return cli_interrupted();
}

/* Only here: without a file a lost terminal should end the transfer. */
static int watch_rate(const struct send *s, struct img_err *err)
{
	struct sigaction sa = {.sa_handler = on_hup};

	rate_now = s->rate;
	rate_file = s->rate_file;
	if (!rate_file)
		return 0;
	sigaction(SIGHUP, &sa, NULL);
	return read_rate(err);
}

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

static unsigned parse_threads(const char *s)
{
	char *end;
	long v = strtol(s, &end, 10);

	if (end == s || *end || v < 1 || v > 8)
		cli_usage("--threads=%s: a number from 1 to 8", s);
	return (unsigned)v;
}

static unsigned cores(void)
{
	long n = sysconf(_SC_NPROCESSORS_ONLN);

	return n < 1 ? 1 : n > 8 ? 8 : (unsigned)n;
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
	case OPT_THREADS:
		s->threads = parse_threads(optarg);
		break;
	case OPT_RATE:
		if (!cli_rate(optarg, &s->rate) || !s->rate)
			cli_usage("--rate-limit=%s: not a rate", optarg);
		break;
	case OPT_AGAINST:
		s->sums = optarg;
		break;
	case OPT_RATE_FILE:
		s->rate_file = optarg;
		break;
	case OPT_RECEIPT:
		s->receipt = optarg;
		break;
	case OPT_CHECKPOINT:
		if (!cli_size(optarg, &s->checkpoint) || !s->checkpoint ||
		    s->checkpoint > STREAM_MAX_CHECKPOINT)
			cli_usage("--checkpoint=%s: not a size up to 256M", optarg);
		break;
	case OPT_RESUME:
		s->resume = *optarg ? optarg : NULL;
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
	if (s->sums && s->from)
		cli_usage("either --against or --from");
	if (s->rate && s->rate_file)
		cli_usage("either --rate-limit or --rate-file");
	if (s->threads && !s->level)
		cli_usage("--threads goes with --compress");
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
	int layer = img_find_layer(s->chain, s->from, err);

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
	return 0;
}

/*
 * The content sum of the base, so that the receiver can tell versions of it apart: asked for, or unasked
 * where it is known or there is little to read for it.
 */
static int sum_base(struct send *s, struct img_err *err)
{
	const struct img_sum_how how = {.known = !s->verify_base,
					.limit = cli_cheap_sum(s->begin.planned_bytes),
					.progress = cli_progress,
					.ctx = &s->progress};
	struct img_open opts = s->common.open;
	struct img_sum_result sum = {.done = false};
	struct img_chain *c = NULL;
	int rc = -1;

	opts.raw = img_layer_info(s->chain, s->base)->type == IMG_RAW;
	cli_progress_start(&s->progress, &s->common, "base");
	if (img_open(&c, img_layer_path(s->chain, s->base), &opts, err) == 0)
		rc = img_sum_disk(c, &how, &sum, err);
	if (rc == 0 && sum.done)
		memcpy(s->begin.base_sum, sum.sum, sizeof(sum.sum));
	if (s->verify_base || s->progress.shown)
		cli_progress_end(&s->progress, rc ? 0 : img_size(c));
	img_close(c);
	return rc;
}

static int tell_base(struct send *s, struct img_err *err)
{
	struct img_err unasked = {0};

	if (!s->from || (s->dry == DRY_MAP && !s->verify_base))
		return 0;
	if (s->verify_base)
		return sum_base(s, err);
	/* What cannot be read there is no part of the increment. */
	if (sum_base(s, &unasked) && cli_interrupted())
		return img_err_set(err, IMG_AGAIN, "interrupted");
	return 0;
}

static int describe_stale(struct send *s, struct img_err *err)
{
	if (against_open(&s->against, s->sums, err))
		return -1;
	if (against_size(s->against) != s->begin.size)
		return img_err_set(err, IMG_DATA,
				   "%s: are of a disk of %" PRIu64 " bytes, %s has %" PRIu64, s->sums,
				   against_size(s->against), s->disk, s->begin.size);
	s->begin.kind = STREAM_DIFFERENCE;
	s->begin.base_size = s->begin.size;
	(void)against_uuid(s->against, s->begin.base_uuid);
	(void)against_content(s->against, s->begin.base_sum);
	return 0;
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
	if ((s->from && describe_base(s, err)) || (s->sums && describe_stale(s, err)))
		return -1;
	b->has_source = true;
	return img_identity(s->chain, 0, s->base, b->source, err);
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

/* The disk from START on, piece by piece: into the stream, or without a writer only counted. */
static int walk(struct send *s, struct img_err *err)
{
	struct img_run run;

	for (uint64_t off = s->token.mark.off; off < s->begin.size; off += run.len) {
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

/* Is the token one of this disk, and of what is to be sent of it? */
static int check_token(struct send *s, struct img_err *err)
{
	const struct stream_token *t = &s->token;
	const struct stream_begin *b = &s->begin;
	static const uint8_t none[16];
	char uuid[IMG_UUID_STR];

	if (t->size != b->size || memcmp(t->uuid, b->has_uuid ? b->uuid : none, 16)) {
		img_uuid_str(t->uuid, uuid);
		return img_err_set(err, IMG_DATA, "%s: the token is of another disk, UUID %s, %" PRIu64
				   " bytes", s->disk, uuid, t->size);
	}
	if (t->kind != b->kind || memcmp(t->base_uuid, b->base_uuid, 16))
		return img_err_set(err, IMG_USAGE,
				   "%s: the token is of a transfer %s; the same options must be given",
				   s->disk, t->kind == STREAM_WHOLE ? "without --from" : "with --from of another disk");
	if (t->append && !t->compressed && s->level)
		return img_err_set(err, IMG_USAGE,
				   "the stored stream is not compressed, so the rest of it cannot be");
	return 0;
}

/* What the prefix sum and the content sum need of a run below the token's position. */
static int reread_run(struct send *s, struct img_run run, struct stream_trail *trail,
		      struct img_sum *content, uint8_t *buf, struct img_err *err)
{
	for (uint64_t n; run.len; run.off += n, run.file_off += n, run.len -= n) {
		struct img_run part = run;

		n = part.len = u64_min(run.len, STREAM_PIECE - run.off % STREAM_PIECE);
		if (run.kind == IMG_DATA_RUN && img_read_run(s->chain, &part, buf, err))
			return -1;
		stream_trail_add(trail, part.off, run.kind == IMG_DATA_RUN ? buf : NULL, n);
		if (content && run.kind == IMG_DATA_RUN)
			img_sum_data(content, buf, (size_t)n);
		else if (content)
			img_sum_zeros(content, n);
	}
	return 0;
}

static int reread(struct send *s, struct stream_trail *trail, struct img_sum *content, uint8_t *buf,
		  struct img_err *err)
{
	const uint64_t end = s->token.mark.off;
	struct img_run run;
	uint64_t off;

	cli_progress_start(&s->progress, &s->common, "what was sent");
	for (off = 0; off < end; off += run.len) {
		if (img_map(s->chain, off, end - off, s->base, &run, err))
			return -1;
		if (run.kind != IMG_BELOW_RUN && reread_run(s, run, trail, content, buf, err))
			return -1;
		if (cli_progress(&s->progress, off, end))
			return img_err_set(err, IMG_AGAIN, "interrupted");
	}
	cli_progress_end(&s->progress, end);
	return 0;
}

/*
 * Nobody wrote to the files since, or what was sent is read again and compared. The rest of a
 * stored stream needs the content sum of all, so there it is read in any case.
 */
static int prove_same(struct send *s, struct img_sum **content, struct img_err *err)
{
	const struct stream_token *t = &s->token;
	struct stream_trail *trail = NULL;
	uint8_t sum[IMG_SUM_BYTES];
	void *buf = NULL;
	int rc = -1;

	if (t->has_source && !memcmp(t->source, s->begin.source, sizeof(sum)) &&
	    (!t->append || s->from || s->against))
		return 0;
	if (s->against)
		return img_err_set(err, IMG_DATA, "%s: was written to since its first part was sent",
				   s->disk);
	if (t->append && !s->from)
		*content = img_sum_new(s->begin.size);
	trail = stream_trail_new();
	if (!trail || posix_memalign(&buf, 4096, STREAM_PIECE) || (t->append && !s->from && !*content)) {
		img_err_errno(err, ENOMEM, "%s", s->disk);
		goto out;
	}
	if (reread(s, trail, *content, buf, err))
		goto out;
	stream_trail_get(trail, sum);
	rc = memcmp(sum, t->mark.trail, sizeof(sum)) == 0 ? 0 :
		img_err_set(err, IMG_DATA, "%s: was changed since its first part was sent; drop that with "
			    "vhd-recv --abort and send it from the start", s->disk);
out:
	stream_trail_free(trail);
	free(buf);
	return rc;
}

static int begin_stream(struct send *s, const struct stream_pipe *to, struct img_sum *content,
			struct img_err *err)
{
	if (s->resume)
		return stream_write_resume(&s->writer, to, s->level, &s->begin, &s->token, content,
					   err);
	return stream_write_begin(&s->writer, to, s->level, &s->begin, err);
}

/* One chunk of the disk; *ZERO when nothing in it has data. */
static int read_chunk(struct send *s, uint64_t off, uint64_t len, uint8_t *buf, bool *zero,
		      struct img_err *err)
{
	struct img_run run;

	if (img_map(s->chain, off, len, s->base, &run, err))
		return -1;
	*zero = run.kind != IMG_DATA_RUN && run.len == len;
	if (*zero)
		return 0;
	for (uint64_t at = 0; at < len; at += run.len) {
		if (img_map(s->chain, off + at, len - at, s->base, &run, err))
			return -1;
		if (run.kind != IMG_DATA_RUN) {
			memset(buf + at, 0, run.len);
			continue;
		}
		if (img_read_run(s->chain, &run, buf + at, err))
			return -1;
	}
	return 0;
}

/*
 * All of the disk is read, and summed with the stale copy's seed; what is equal there is not
 * sent.
 */
static int walk_against(struct send *s, struct img_err *err)
{
	const uint64_t seed = against_seed(s->against), size = s->begin.size;
	struct img_sum *content = img_sum_new(size);
	uint8_t stale[IMG_SUM_BYTES], ours[IMG_SUM_BYTES], zeros[IMG_SUM_BYTES], *buf;
	char sum[IMG_SUM_STR];
	int rc = -1;

	if (!content) {
		img_err_errno(err, ENOMEM, "%s", s->disk);
		goto out;
	}
	img_sum_watch(content, img_sums_add, s->kept);
	if (stream_write_space(s->writer, STREAM_PIECE, &buf, err))
		goto out;
	img_sum_chunk(memset(buf, 0, STREAM_PIECE), STREAM_PIECE, seed, zeros);
	for (uint64_t off = 0, len; off < size; off += len) {
		bool zero;

		len = u64_min(size - off, STREAM_PIECE);
		if (against_next(s->against, stale, err) ||
		    stream_write_space(s->writer, STREAM_PIECE, &buf, err) ||
		    read_chunk(s, off, len, buf, &zero, err))
			goto out;
		if (zero)
			img_sum_zeros(content, len);
		else
			img_sum_data(content, buf, (size_t)len);
		if (zero && len == STREAM_PIECE)
			memcpy(ours, zeros, sizeof(ours));
		else
			img_sum_chunk(zero ? memset(buf, 0, (size_t)len) : buf, (size_t)len, seed, ours);
		if (off >= s->token.mark.off && memcmp(stale, ours, sizeof(ours)) != 0 &&
		    (zero ? stream_write_zero(s->writer, off, len, err)
			  : stream_write_data(s->writer, off, buf, (size_t)len, err)))
			goto out;
		if (cli_progress(&s->progress, off, size)) {
			img_err_set(err, IMG_AGAIN, "interrupted");
			goto out;
		}
	}
	img_sum_final(content, sum);
	stream_write_content(s->writer, sum);
	rc = against_end(s->against, err);
out:
	img_sum_free(content);
	return rc;
}

static int report_dry(const struct send *s, struct img_err *err)
{
	const struct stream_totals *t = &s->totals;
	const bool exact = s->dry == DRY_EXACT;
	uint64_t bytes = exact ? stream_write_sent(s->writer) : stream_bound(&s->begin, s->checkpoint);
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
		       s->from ? "increment" : s->sums ? "difference" : "whole", s->begin.size, bytes, records, data);
		return 0;
	}
	r.uuid = s->begin.has_uuid ? s->begin.uuid : NULL;
	without_id.stream_sum[0] = '\0'; /* the real stream has another id */
	without_id.wire_bytes = bytes;
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
				 .stop = stop,
				 .rate = rate_now,
				 .live_rate = s->rate_file ? &rate_now : NULL,
				 .checkpoint = s->checkpoint,
				 .threads = s->threads ? s->threads : cores()};
	struct img_sum *content = NULL;

	if (s->resume && (check_token(s, err) || prove_same(s, &content, err))) {
		img_sum_free(content);
		return -1;
	}
	if (walk(s, err)) {
		img_sum_free(content);
		return -1;
	}
	if (tell_base(s, err)) {
		img_sum_free(content);
		return -1;
	}
	if (s->dry == DRY_MAP)
		return report_dry(s, err);
	cli_progress_start(&s->progress, &s->common, s->disk);
	/* Of all of it, or none. */
	if (!s->from && !s->resume)
		s->kept = img_sums_begin(s->chain);
	if (begin_stream(s, &to, content, err))
		return -1;
	stream_write_watch(s->writer, img_sums_add, s->kept);
	if ((s->against ? walk_against(s, err) : walk(s, err)) || stream_write_end(s->writer, &s->totals, err)) {
		stream_write_abort(s->writer, err);
		return -1;
	}
	cli_progress_end(&s->progress, s->done);
	img_sums_store(s->kept, s->chain);
	s->kept = NULL;
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
	if (watch_rate(&s, &err) || (s.receipt && receipt_check(s.receipt, s.force, &err)) ||
	    (s.resume && stream_token_get(s.resume, &s.token, &err)))
		goto out;
	if (img_open(&s.chain, s.disk, &s.common.open, &err) || describe(&s, &err))
		goto out;
	cli_warn_chain(&s.common, s.chain);
	rc = send_all(&s, &err);
out:
	img_sums_drop(s.kept);
	stream_writer_free(s.writer);
	against_close(s.against);
	img_close(s.chain);
	return cli_exit(rc ? cli_fail(&err) : 0);
}
