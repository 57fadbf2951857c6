/* SPDX-License-Identifier: BSD-2-Clause */
/* A stored stream: what it holds, whether it is whole, and its rest when it is not. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "io.h"
#include "receipt.h"
#include "stream.h"

static const char help[] =
	"Usage: vhd-stream info|verify|dump [OPTION]... [STREAM]\n"
	"       vhd-stream trim [OPTION]... STREAM\n"
	"Looks at a stream that vhd-send made (vhd-stream(5)): a file, or standard input.\n"
	"\n"
	"  info    what its first record says of the disk\n"
	"  verify  read all of it, and check everything that a receiver would\n"
	"  dump    the same, and print each record\n"
	"  trim    cut a stream that ends too early behind its last checkpoint, and print the token\n"
	"          with which  vhd-send --resume=TOKEN DISK >> STREAM  appends the rest\n"
	"\n"
	"      --json           report as JSON\n"
	"  -f, --force          trim also a stream that is damaged, not only cut\n"
	"  -n, --dry-run        only say what trim would do\n" CLI_HELP_COMMON;

enum verb { INFO, VERIFY, DUMP, TRIM };

struct job {
	struct cli_common common;
	enum verb verb;
	bool json, force, dry_run;
	const char *path;
	struct io_file file;
	struct stream_begin begin;
	struct stream_totals totals;
	struct stream_mark mark; /* the last place to go on */
	bool begun, marked;
	struct cli_progress progress;
	uint64_t size; /* of the file, 0: not known */
};

static const struct option options[] = {
	CLI_COMMON_LONG,
	{"json", no_argument, NULL, CLI_JSON},
	{"force", no_argument, NULL, 'f'},
	{"dry-run", no_argument, NULL, 'n'},
	{NULL, 0, NULL, 0},
};

static enum verb parse_verb(const char *s)
{
	static const char *const names[] = {"info", "verify", "dump", "trim"};

	for (size_t i = 0; s && i < sizeof(names) / sizeof(names[0]); i++)
		if (!strcmp(s, names[i]))
			return (enum verb)i;
	cli_usage(s ? "'%s' is none of info, verify, dump and trim" : "what is to be done?", s);
}

static void parse(struct job *j, int argc, char **argv)
{
	int opt;

	cli_common_init(&j->common);
	while ((opt = getopt_long(argc, argv, CLI_COMMON_SHORT "fn", options, NULL)) != -1) {
		if (cli_common(&j->common, opt, optarg))
			continue;
		j->json |= opt == CLI_JSON;
		j->force |= opt == 'f';
		j->dry_run |= opt == 'n';
	}
	j->verb = parse_verb(argv[optind]);
	if (argc - optind > 2)
		cli_usage("one stream at a time");
	j->path = argv[optind + 1];
	if (j->path && !strcmp(j->path, "-"))
		j->path = NULL;
	if (j->verb == TRIM ? !j->path : j->force || j->dry_run)
		cli_usage(j->verb == TRIM ? "trim needs the name of a file"
					  : "--force and --dry-run go with trim");
	if (!j->path && isatty(STDIN_FILENO))
		cli_usage("stdin is a terminal; name a stream");
}

static int on_begin(void *ctx, const struct stream_begin *begin, struct img_err *err)
{
	struct job *j = ctx;

	(void)err;
	j->begin = *begin;
	j->begun = true;
	return j->verb == INFO ? -1 : 0; /* info has seen enough */
}

static int on_data(void *ctx, uint64_t off, const void *buf, size_t len, struct img_err *err)
{
	struct job *j = ctx;

	(void)buf;
	if (cli_progress(&j->progress, off + len, j->begin.size))
		return img_err_set(err, IMG_AGAIN, "interrupted");
	return 0;
}

static int on_zero(void *ctx, uint64_t off, uint64_t len, struct img_err *err)
{
	(void)ctx, (void)off, (void)len, (void)err;
	return 0;
}

static int on_mark(void *ctx, const struct stream_mark *mark, struct img_err *err)
{
	struct job *j = ctx;

	(void)err;
	j->mark = *mark;
	j->marked = true;
	return 0;
}

static void on_record(void *ctx, const struct stream_record *r)
{
	struct job *j = ctx;
	const char *name = stream_type_name(r->type);
	char number[8];

	if (j->verb != DUMP)
		return;
	if (!name) {
		snprintf(number, sizeof(number), "%u", r->type);
		name = number;
	}
	if (j->json)
		printf("{\"record\":%" PRIu64 ",\"position\":%" PRIu64
		       ",\"type\":\"%s\",\"flags\":%u,\"offset\":%" PRIu64 ",\"length\":%" PRIu64
		       ",\"stored\":%u}\n",
		       r->seq, r->pos, name, r->flags, r->off, r->len, r->stored);
	else
		printf("%-8" PRIu64 " %-14" PRIu64 " %-10s %u %-14" PRIu64 " %-12" PRIu64 " %u\n",
		       r->seq, r->pos, name, r->flags, r->off, r->len, r->stored);
}

static void print_uuid(const char *name, const uint8_t *uuid, bool there)
{
	char text[IMG_UUID_STR];

	img_uuid_str(uuid, text);
	printf(there ? ",\"%s\":\"%s\"" : ",\"%s\":null", name, text);
}

static void print_info(const struct job *j)
{
	const struct stream_begin *b = &j->begin;
	char text[IMG_UUID_STR], human[32];

	if (j->json) {
		printf("{\"version\":1,\"kind\":\"%s\",\"size\":%" PRIu64 ",\"type\":\"%s\"",
		       stream_kind_name(b->kind), b->size, img_type_name(b->type));
		print_uuid("uuid", b->uuid, b->has_uuid);
		print_uuid("base_uuid", b->base_uuid, b->kind != STREAM_WHOLE);
		printf(",\"block_size\":%u,\"compressed\":%s,\"planned_bytes\":%" PRIu64
		       ",\"planned_records\":%" PRIu64 "}\n",
		       b->block_size, b->compressed ? "true" : "false", b->planned_bytes,
		       b->planned_records);
		return;
	}
	printf("kind:        %s\n", stream_kind_name(b->kind));
	printf("size:        %" PRIu64 " (%s)\n", b->size, cli_human(b->size, human));
	printf("type:        %s\n", img_type_name(b->type));
	img_uuid_str(b->uuid, text);
	if (b->has_uuid)
		printf("UUID:        %s\n", text);
	img_uuid_str(b->base_uuid, text);
	if (b->kind != STREAM_WHOLE)
		printf("base:        %s\n", text);
	printf("compressed:  %s\n", b->compressed ? "yes" : "no");
	printf("data:        at most %" PRIu64 " bytes in %" PRIu64 " records\n", b->planned_bytes,
	       b->planned_records);
}

static int print_verified(const struct job *j, struct img_err *err)
{
	struct receipt r = {
		.file = j->path ? j->path : "-", .begin = &j->begin, .totals = &j->totals};
	char *text;

	if (!j->json) {
		cli_print_text(stdout, r.file, "");
		printf(": whole, %" PRIu64 " bytes in %" PRIu64 " records\n", j->totals.wire_bytes,
		       j->totals.records);
		return 0;
	}
	r.uuid = j->begin.has_uuid ? j->begin.uuid : NULL;
	text = receipt_json(&r);
	if (!text)
		return img_err_errno(err, ENOMEM, "%s", r.file);
	fputs(text, stdout);
	free(text);
	return 0;
}

static void print_token(const struct job *j)
{
	struct stream_token t = {.append = true, .compressed = j->begin.compressed};
	char text[STREAM_TOKEN_STR];

	memcpy(t.stream_id, j->begin.stream_id, 16);
	t.kind = j->begin.kind;
	t.size = j->begin.size;
	memcpy(t.uuid, j->begin.uuid, 16);
	memcpy(t.base_uuid, j->begin.base_uuid, 16);
	t.has_source = j->begin.has_source;
	memcpy(t.source, j->begin.source, sizeof(t.source));
	t.mark = j->mark;
	stream_token_put(&t, text);
	if (j->json)
		printf("{\"version\":1,\"complete\":false,\"bytes\":%" PRIu64
		       ",\"removed\":%" PRIu64 ",\"token\":\"%s\"}\n",
		       j->mark.wire_bytes, j->size - j->mark.wire_bytes, text);
	else
		puts(text);
}

/* BAD says why the stream is not whole. */
static int trim(struct job *j, const struct img_err *bad, struct img_err *err)
{
	if (!bad->code) {
		if (j->json)
			puts("{\"version\":1,\"complete\":true}");
		else if (!j->common.quiet)
			cli_warn("%s: is whole, there is nothing to do", j->path);
		return 0;
	}
	if (bad->code != IMG_PROTO || (!j->totals.cut && !j->force)) {
		img_err_set(err, bad->code, "%s%s", bad->msg,
			    bad->code == IMG_PROTO
				    ? "; it is not only cut: --force drops it from there on"
				    : "");
		return -1;
	}
	if (!j->marked)
		return img_err_set(err, IMG_DATA,
				   "%s: has no checkpoint to go on from; send it anew", j->path);
	if (!j->dry_run &&
	    (io_truncate(&j->file, j->mark.wire_bytes, err) || io_sync(&j->file, err)))
		return -1;
	print_token(j);
	return 0;
}

/* Of a stored stream that was cut something can be kept. */
static int fail(const struct job *j, const struct img_err *bad, struct img_err *err)
{
	if (!j->path || !j->marked || !j->totals.cut)
		return img_err_set(err, bad->code, "%s", bad->msg);
	return img_err_set(err, bad->code,
			   "%s; or go on behind byte %" PRIu64 ": vhd-stream trim %s", bad->msg,
			   j->mark.wire_bytes, j->path);
}

static int open_stream(struct job *j, struct img_err *err)
{
	const bool write = j->verb == TRIM && !j->dry_run;

	if (!j->path)
		return 0;
	if (io_open(&j->file, j->path, write, err) ||
	    io_lock(&j->file, write ? IO_LOCK_EXCLUSIVE : IO_LOCK_SHARED, err))
		return -1;
	return io_size(&j->file, &j->size, err);
}

static int work(struct job *j, struct img_err *err)
{
	const struct stream_visitor visitor = {.ctx = j,
					       .begin = on_begin,
					       .data = on_data,
					       .zero = on_zero,
					       .record = on_record,
					       .mark = on_mark};
	struct stream_pipe from = {.fd = STDIN_FILENO,
				   .name = j->path ? j->path : "standard input",
				   .stop = cli_interrupted};
	struct img_err bad = {0};

	if (open_stream(j, err))
		return -1;
	if (j->path)
		from.fd = j->file.fd;
	cli_progress_start(&j->progress, &j->common, "verify");
	(void)stream_read(&from, &visitor, &j->totals, &bad);
	cli_progress_end(&j->progress, j->begin.size);
	if (j->verb == INFO && j->begun) {
		print_info(j);
		return 0;
	}
	if (j->verb == TRIM)
		return trim(j, &bad, err);
	if (bad.code)
		return fail(j, &bad, err);
	return j->verb == VERIFY ? print_verified(j, err) : 0;
}

int main(int argc, char **argv)
{
	struct job j = {0};
	struct img_err err = {0};
	int rc;

	cli_init(argv, "vhd-stream", help);
	parse(&j, argc, argv);
	cli_catch_signals();
	io_init(&j.file);
	rc = work(&j, &err);
	io_close(&j.file);
	return cli_exit(rc ? cli_fail(&err) : 0);
}
