/* SPDX-License-Identifier: BSD-2-Clause */
/* What is kept of a disk that has not come to its end: told, or dropped. */
#include "config.h"

#include <inttypes.h>
#include <string.h>

#include "recv.h"

static void print_status(const struct recv *r, const struct partial *p)
{
	const struct stream_mark *m = p ? partial_mark(p) : NULL;
	char token[STREAM_TOKEN_STR], uuid[IMG_UUID_STR], a[32], b[32];
	const char *state = p && partial_in_use(p) ? "receiving" : m ? "partial" : "none";
	const struct partial_head *h = p ? partial_get(p) : NULL;

	if (!r->json && !m)
		fprintf(r->out, "%s: %s\n", r->file,
			p && partial_in_use(p) ? "being received, nothing is durable yet"
					       : "nothing of it is here");
	if (!r->json && m)
		fprintf(r->out, "%s: %s of %s are here%s\n", r->file, cli_human(m->off, a),
			cli_human(h->what.size, b),
			partial_in_use(p) ? ", and it is being received" : "");
	if (!r->json)
		return;
	fputs("{\"version\":1,\"file\":", r->out);
	cli_json_string(r->out, r->file);
	fprintf(r->out, ",\"state\":\"%s\"", state);
	if (m) {
		img_uuid_str(h->uuid, uuid);
		partial_token(p, token);
		fprintf(r->out,
			",\"kind\":\"%s\",\"type\":\"%s\",\"uuid\":\"%s\",\"size\":%" PRIu64
			",\"offset\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"began\":%" PRIu64
			",\"time\":%" PRIu64 ",\"parent\":",
			h->what.kind == STREAM_WHOLE ? "whole" : "increment",
			img_type_name(h->type), uuid, h->what.size, m->off, m->wire_bytes, h->began,
			partial_time(p));
		if (*h->parent)
			cli_json_string(r->out, h->parent);
		else
			fputs("null", r->out);
		fprintf(r->out, ",\"token\":\"%s\"", token);
	}
	fputs("}\n", r->out);
}

int recv_manage(struct recv *r, struct img_err *err)
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
		fprintf(r->out, "%s\n", token);
	}
	published = p && partial_is_published(p) && !partial_get(p)->onto;
	if (r->verb == ABORT && p && partial_is_applied(p) && !partial_is_done(p)) {
		img_err_set(
			err, IMG_DATA,
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
