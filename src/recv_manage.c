/* SPDX-License-Identifier: BSD-2-Clause */
/* What is kept of a disk that has not come to its end: told, or dropped. */
#include "config.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "recv.h"

static void print_mark(FILE *f, const struct partial *p)
{
	const struct stream_mark *m = partial_mark(p);
	const struct partial_head *h = partial_get(p);
	char token[STREAM_TOKEN_STR], uuid[IMG_UUID_STR];

	img_uuid_str(h->uuid, uuid);
	partial_token(p, token);
	fprintf(f,
		",\"kind\":\"%s\",\"type\":\"%s\",\"uuid\":\"%s\",\"size\":%" PRIu64
		",\"offset\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"began\":%" PRIu64
		",\"time\":%" PRIu64 ",\"parent\":",
		stream_kind_name(h->what.kind), img_type_name(h->type), uuid, h->what.size, m->off,
		m->wire_bytes, h->began, partial_time(p));
	if (*h->parent)
		cli_json_string(f, h->parent);
	else
		fputs("null", f);
	fprintf(f, ",\"token\":\"%s\"", token);
}

static void print_json(const struct recv *r, const struct partial *p, bool closed)
{
	const struct stream_mark *m = p ? partial_mark(p) : NULL;

	fputs("{\"version\":1,\"file\":", r->out);
	cli_json_string(r->out, r->file);
	fprintf(r->out, ",\"state\":\"%s\",\"closed\":%s",
		p && partial_in_use(p) ? "receiving"
		: m		       ? "partial"
				       : "none",
		closed ? "true" : "false");
	if (m)
		print_mark(r->out, p);
	fputs("}\n", r->out);
}

static void print_status(const struct recv *r, const struct partial *p, enum img_receiving state)
{
	const struct stream_mark *m = p ? partial_mark(p) : NULL;
	bool in_use = p && partial_in_use(p);
	char a[32], b[32];

	if (m)
		fprintf(r->out, "%s: %s of %s are here%s\n", r->file, cli_human(m->off, a),
			cli_human(partial_get(p)->what.size, b),
			in_use ? ", and it is being received" : "");
	else
		fprintf(r->out, "%s: %s\n", r->file,
			in_use ? "being received, nothing is durable yet"
			       : "nothing of it is here");
	if (state != IMG_RECEIVING_NOT && !in_use)
		fprintf(r->out, "%s: no tool opens it until the same command has finished%s\n",
			r->file, state == IMG_RECEIVING_MERGE ? "" : ", or vhd-recv --abort");
}

/* *P locked, and what FILE is closed for then. A log that was lost is no reason to leave FILE
 * closed, or the image there. */
static int take_hold(struct recv *r, struct partial **p, enum img_receiving *state,
		     struct img_err *err)
{
	if (partial_open(p, r->file, PARTIAL_FIND, err) || img_receive_state(r->file, state, err))
		return -1;
	if (*p || (*state != IMG_RECEIVING && !partial_is_left(r->file)))
		return 0;
	return partial_open(p, r->file, PARTIAL_MAKE, err) || img_receive_state(r->file, state, err)
		       ? -1
		       : 0;
}

/*
 * Whatever its state, but for a merge that has begun: then FILE is neither old nor new. The files
 * go first, since while FILE is closed the same command can finish this.
 */
static int drop(struct recv *r, struct img_err *err)
{
	enum img_receiving state;
	struct partial *p = NULL;
	bool published;
	int rc;

	rc = take_hold(r, &p, &state, err);
	if (rc == 0 && p) {
		published = partial_is_published(p) && !partial_get(p)->onto;
		rc = partial_remove(p, !published, err);
	}
	if (rc == 0)
		rc = img_receive_end(r->file, err);
	partial_close(p);
	return rc;
}

int recv_manage(struct recv *r, struct img_err *err)
{
	enum img_receiving state;
	char token[STREAM_TOKEN_STR];
	struct partial *p = NULL;

	if (r->verb == ABORT)
		return drop(r, err);
	if (partial_open(&p, r->file, r->verb == STATUS ? PARTIAL_PEEK : PARTIAL_FIND, err))
		return -1;
	if (r->verb == TOKEN && p && partial_mark(p)) {
		partial_token(p, token);
		fprintf(r->out, "%s\n", token);
	}
	if (r->verb == STATUS && img_receive_state(r->file, &state, err)) {
		partial_close(p);
		return -1;
	}
	if (r->verb == STATUS && r->json)
		print_json(r, p, state != IMG_RECEIVING_NOT);
	else if (r->verb == STATUS)
		print_status(r, p, state);
	partial_close(p);
	return 0;
}
