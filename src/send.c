/* SPDX-License-Identifier: BSD-2-Clause */
/* From the first look at the disk to the end of the stream; the walk through the layers. */
#include "config.h"

#include "bytes.h"
#include "rate.h"
#include "receipt.h"
#include "send.h"

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

static int add_data(struct send *s, struct img_run run, struct img_err *err)
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

static int add_zeros(struct send *s, const struct img_run *run, struct img_err *err)
{
	if (!s->writer)
		s->begin.planned_records++;
	else if (stream_write_zero(s->writer, run->off, run->len, err))
		return -1;
	return cli_interrupted() ? img_err_set(err, IMG_AGAIN, "interrupted") : 0;
}

/* From the token's place on, piece by piece: into the stream, or without a writer only counted. */
static int walk(struct send *s, struct img_err *err)
{
	struct img_run run;

	for (uint64_t off = s->token.mark.off; off < s->begin.size; off += run.len) {
		if (img_map(s->chain, off, s->begin.size - off, s->base, &run, err))
			return -1;
		if (run.kind == IMG_DATA_RUN ? add_data(s, run, err) : end_piece(s, err))
			return -1;
		if (run.kind == IMG_ZERO_RUN && add_zeros(s, &run, err))
			return -1;
	}
	return end_piece(s, err);
}

static int begin_stream(struct send *s, struct img_err *err)
{
	struct img_sum *content = s->content;

	s->content = NULL; /* the writer's */
	if (s->resume)
		return stream_write_resume(&s->writer, &s->to, s->level, &s->begin, &s->token,
					   content, err);
	return stream_write_begin(&s->writer, &s->to, s->level, &s->begin, err);
}

static int write_stream(struct send *s, struct img_err *err)
{
	cli_progress_start(&s->progress, &s->common, s->disk);
	if (begin_stream(s, err))
		return -1;
	stream_write_watch(s->writer, img_sums_add, s->kept);
	if ((s->against ? send_differences(s, err) : walk(s, err)) ||
	    stream_write_end(s->writer, &s->totals, err)) {
		stream_write_abort(s->writer, err);
		return -1;
	}
	cli_progress_end(&s->progress, s->done);
	return 0;
}

/* All that the user named is looked at before the first byte. */
static int prepare(struct send *s, struct img_err *err)
{
	struct img_err absent = {0};

	if (rate_limit(&s->to, s->rate, s->rate_file, err) ||
	    (s->receipt && receipt_check(s->receipt, s->force, err)) ||
	    (s->resume && stream_token_get(s->resume, &s->token, err)))
		return -1;
	if (img_open(&s->chain, s->disk, &s->common.open, err))
		return -1;
	if (s->receipt && img_find_layer(s->chain, s->receipt, &absent) >= 0)
		return img_err_set(err, IMG_USAGE, "%s: is a part of the disk, and no receipt",
				   s->receipt);
	if (send_describe(s, err))
		return -1;
	cli_warn_chain(&s->common, s->chain);
	if (!s->from && s->dry != DRY_MAP)
		s->kept = img_sums_begin(s->chain);
	return s->resume ? send_prove(s, err) : 0;
}

int send_disk(struct send *s, struct img_err *err)
{
	/* The plan comes first: it says what may be read of the base. */
	if (prepare(s, err) || walk(s, err) || send_tell_base(s, err))
		return -1;
	if (s->dry != DRY_MAP && write_stream(s, err))
		return -1;
	return send_report(s, err);
}

void send_end(struct send *s)
{
	img_sum_free(s->content);
	/* Also of a stream that was cut, for the one that goes on. */
	img_sums_store(s->kept, s->chain);
	stream_writer_free(s->writer);
	against_close(s->against);
	img_close(s->chain);
}
