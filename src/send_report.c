/* SPDX-License-Identifier: BSD-2-Clause */
/* What was sent, or would be. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "receipt.h"
#include "send.h"

static int make_receipt(const struct send *s, const struct stream_totals *totals, char **text,
			struct img_err *err)
{
	const struct receipt r = {.file = s->disk,
				  .parent = s->from,
				  .uuid = s->begin.has_uuid ? s->begin.uuid : NULL,
				  .begin = &s->begin,
				  .totals = totals};

	*text = receipt_json(&r);
	return *text ? 0 : img_err_errno(err, ENOMEM, "%s", s->disk);
}

/* The bytes of the stream, its records with BEGIN and END, and data in them. */
static void print_counts(const char *how, uint64_t bytes, uint64_t records, uint64_t data)
{
	char human[32];

	printf("%s%" PRIu64 " bytes (%s) in %" PRIu64 " records, %" PRIu64 " of them data\n", how,
	       bytes, cli_human(bytes, human), records, data);
}

static int report_planned(const struct send *s)
{
	const struct stream_begin *b = &s->begin;
	const uint64_t bytes = stream_bound(b, s->to.checkpoint, s->resume);
	const uint64_t records = b->planned_records + 2;

	if (s->json)
		printf("{\"version\":1,\"exact\":false,\"kind\":\"%s\",\"size\":%" PRIu64
		       ",\"bytes\":%" PRIu64 ",\"records\":%" PRIu64 ",\"data_bytes\":%" PRIu64
		       "}\n",
		       stream_kind_name(b->kind), b->size, bytes, records, b->planned_bytes);
	else
		print_counts("at most ", bytes, records, b->planned_bytes);
	return 0;
}

static int report_counted(const struct send *s, struct img_err *err)
{
	const struct stream_mark *m = &s->token.mark;
	struct stream_totals t = s->totals;
	char *text;

	/* Of the rest, which has CONTINUE where the start has BEGIN. */
	if (s->resume) {
		t.records = t.records - m->seq + 1;
		t.data_bytes -= m->data_bytes;
		t.zero_bytes -= m->zero_bytes;
	}
	t.wire_bytes = stream_write_sent(s->writer);
	t.stream_sum[0] = '\0'; /* the real stream has another id */
	if (!s->json) {
		print_counts("", t.wire_bytes, t.records, t.data_bytes);
		return 0;
	}
	if (make_receipt(s, &t, &text, err))
		return -1;
	fputs(text, stdout);
	free(text);
	return 0;
}

static int store_receipt(const struct send *s, struct img_err *err)
{
	char *text;
	int rc;

	if (make_receipt(s, &s->totals, &text, err))
		return -1;
	rc = receipt_store(s->receipt, text, s->force, err);
	free(text);
	return rc;
}

int send_report(const struct send *s, struct img_err *err)
{
	if (s->dry == DRY_MAP)
		return report_planned(s);
	if (s->dry)
		return report_counted(s, err);
	return s->receipt ? store_receipt(s, err) : 0;
}
