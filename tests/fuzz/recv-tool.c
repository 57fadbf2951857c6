/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vhd-recv, all but its command line: its threads, its log, the merge of --onto. The stream comes
 * through a pipe; cut somewhere and gone on with by its token, the answer must be the same. What is
 * refused leaves nothing behind after --abort, and the base as it was.
 */
#include "config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "bytes.h"
#include "fuzz-recv.h"
#include "fuzz.h"
#include "recv.h"

struct tool {
	const struct model *m;
	bool onto, verify;
	int type;
	char file[4096], base[4096];
	struct stream_begin begin; /* of the last stream */
	struct img_err err;	   /* why it was refused */
};

static void ready(const struct tool *t, struct recv *r, enum verb verb)
{
	*r = (struct recv){.verb = verb, .type = t->type, .onto = t->onto, .verify = t->verify};
	cli_common_init(&r->common);
	r->common.quiet = true;
	r->file = r->path = t->file;
	r->parent = t->m->kind != STREAM_WHOLE ? t->base : NULL;
}

/* All of it fits. A pair of sockets, since a descriptor above 2 counts as one to be written to. */
static int in_pipe(const uint8_t *p, size_t n)
{
	int fd[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) ||
	    write(fd[1], p, n) != (ssize_t)n || close(fd[1]))
		fuzz_die(NULL, "no pipe");
	return fd[0];
}

static bool receive(struct tool *t, const uint8_t *p, size_t n)
{
	static FILE *nowhere;
	struct img_err err = {0};
	struct recv r;
	int rc;

	if (!nowhere && !(nowhere = fopen("/dev/null", "w")))
		fuzz_die(NULL, "no /dev/null");
	ready(t, &r, RECEIVE);
	r.in = in_pipe(p, n);
	r.out = nowhere;
	rc = recv_stream(&r, &err);
	t->begin = r.begin;
	t->err = err;
	recv_end(&r);
	close(r.in);
	if (getenv("FUZZ_VERBOSE"))
		fprintf(stderr, "  vhd-recv: %d %s\n", rc, rc ? err.msg : "accepted");
	if (rc && (!err.code || !err.msg[0]))
		fuzz_die(NULL, "refused without a word");
	if (rc && !t->onto && access(t->file, F_OK) == 0)
		fuzz_die(NULL, "refused, and there is a disk");
	return rc == 0;
}

static void manage(const struct tool *t, enum verb verb, char *text, size_t size)
{
	struct img_err err = {0};
	struct recv r;

	memset(text, 0, size);
	ready(t, &r, verb);
	r.out = fmemopen(text, size, "w");
	if (!r.out || recv_manage(&r, &err))
		fuzz_die(&err, "--token or --abort");
	fclose(r.out);
	recv_end(&r);
	text[strcspn(text, "\n")] = '\0';
}

/* What was taken is in the file, and what is remembered of it is true. */
static void check_taken(const struct tool *t, const struct model *m)
{
	static const uint8_t raw[16];
	struct img_open o = {0};
	const struct img_sum_how how = {.known = true};
	struct img_sum_result sum = {0};
	struct img_err err = {0};
	char want[IMG_SUM_STR];
	struct img_chain *c;

	o.raw = t->onto ? memcmp(m->base_uuid, raw, 16) == 0
			: m->kind == STREAM_WHOLE && (t->type == IMG_RAW);
	recv_check_disk(t->file, o.raw, m);
	if (img_open(&c, t->file, &o, &err) || img_sum_disk(c, &how, &sum, &err))
		fuzz_die(&err, "no sum");
	stream_sum_str(m->content, want);
	if (strcmp(sum.sum, want) != 0)
		fuzz_die(NULL, "the sums that were kept make %s, the disk has %s", sum.sum, want);
	img_close(c);
}

/* Nothing of it is left, and the base is what it was. */
static void check_dropped(const struct tool *t)
{
	static const uint8_t raw[16];
	static struct model base;
	static const char *const left[] = {
		".out.partial.tmp", ".out.partial-log.tmp",  ".out.onto.tmp", ".base.partial.tmp",
		".base.onto.tmp",   ".base.partial-log.tmp", "base.merging",  "out"};
	char text[64];

	manage(t, ABORT, text, sizeof(text));
	for (unsigned i = 0; i < sizeof(left) / sizeof(left[0]); i++)
		if (fuzz_exists(left[i]))
			fuzz_die(NULL, "%s is left", left[i]);
	if (t->m->kind == STREAM_WHOLE)
		return;
	base.size = t->m->base_size;
	model_base(base.disk, base.size);
	recv_check_disk(t->base, memcmp(t->m->base_uuid, raw, 16) == 0, &base);
}

/* What the page says of the stream, and of what it must fit. */
static bool wanted(const struct model *m)
{
	/* What a difference makes of its base is read before it is taken, also without --verify. */
	if (m->kind == STREAM_DIFFERENCE && !m->content_right)
		return false;
	return m->ok && !m->own_base && !m->other_base;
}

static void verdict(const struct tool *t, bool taken, const struct model *m, const char *what)
{
	if (taken != wanted(m))
		fuzz_die(&t->err, "%s %s by vhd-recv, but the page says: %s at %zu", what,
			 taken ? "is accepted" : "is refused", m->ok ? "right" : m->why, m->at);
	if (taken)
		check_taken(t, m);
	else
		check_dropped(t);
}

static void in_two_pieces(struct tool *t, const uint8_t *p, size_t n, const uint8_t *head)
{
	static struct rest rest;
	static struct model whole;
	const struct model *m = t->m;
	char text[STREAM_TOKEN_STR + 2];
	struct stream_token token;
	struct img_err err = {0};
	size_t cut = recv_cut(m, (head[2] - 1u) % m->marks, head), at = 0;

	for (unsigned i = 0; i < m->marks; i++)
		at = m->mark[i] <= cut ? m->mark[i] : at;
	if (receive(t, p, cut))
		fuzz_die(NULL, "accepted without its end");
	if (t->err.code != IMG_AGAIN)
		fuzz_die(&t->err, "it was cut, and the status is %d", t->err.code);
	manage(t, TOKEN, text, sizeof(text));
	if (stream_token_get(text, &token, &err))
		fuzz_die(&err, "no token");
	if (token.mark.wire_bytes != at)
		fuzz_die(NULL, "goes on at byte %llu, wanted %zu",
			 (unsigned long long)token.mark.wire_bytes, at);
	recv_make_rest(&rest, &t->begin, &token.mark, p, n, head);
	model_read(&whole, rest.joined, n, true);
	verdict(t, receive(t, rest.p, rest.len), &whole, "the rest");
}

static bool start(struct tool *t, const struct model *m, const uint8_t *head)
{
	static const enum img_type types[] = {IMG_DYNAMIC, IMG_FIXED, IMG_RAW};

	*t = (struct tool){.m = m, .verify = head[0] & VERIFY, .type = TYPE_KEEP};
	snprintf(t->base, sizeof(t->base), "%s", fuzz_path("base"));
	if (m->kind == STREAM_WHOLE) {
		t->type = (int)types[head[1] % 3];
		if (!m->size || m->size % SECTOR) /* fits no VHD */
			t->type = IMG_RAW;
	} else {
		/* What no VHD can be. */
		if (!m->size || m->size % SECTOR || !m->base_size || m->base_size % SECTOR)
			return false;
		/* A merge may change the size, where there is one to be changed. */
		t->onto = head[0] & ONTO && m->size == m->base_size;
	}
	snprintf(t->file, sizeof(t->file), "%s", t->onto ? t->base : fuzz_path("out"));
	fuzz_dir_clear();
	if (m->kind != STREAM_WHOLE)
		recv_make_base(t->base, m->base_uuid, m->base_size);
	return true;
}

void recv_by_tool(const uint8_t *p, size_t n, const struct model *m, const uint8_t *head)
{
	static struct tool t;

	if (m->too_large || !start(&t, m, head))
		return;
	if (head[2] && wanted(m) && m->marks)
		in_two_pieces(&t, p, n, head);
	else
		verdict(&t, receive(&t, p, n), m, "the stream");
}
