/* SPDX-License-Identifier: BSD-2-Clause */
/* vhd-convert: what the guest sees, copied into a new disk of another format. */
#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bytes.h"
#include "cli.h"
#include "io.h"

static const char help[] =
	"Usage: vhd-convert [options] --type=raw|fixed|dynamic SRC DST\n"
	"       vhd-convert [options] --azure SRC DST\n"
	"Copy a disk, through all its parents, into a new one that stands alone.\n"
	"\n"
	"      --type=raw|fixed|dynamic  the format of DST; raw may go to '-' or to a device\n"
	"      --azure          fixed, with a size that is a multiple of 1 MiB\n"
	"      --from=raw       SRC is a raw disk\n"
	"      --pad            fill the last sector of a raw SRC with zeros\n"
	"  -f, --force          replace DST if it exists, or is a device\n" CLI_HELP_CHAIN
		CLI_HELP_COMMON;

enum { OPT_TYPE = CLI_TOOL, OPT_FROM, OPT_PAD, OPT_AZURE };

static const struct option options[] = {
	CLI_COMMON_LONG,
	CLI_CHAIN_LONG,
	{"type", required_argument, NULL, OPT_TYPE},
	{"from", required_argument, NULL, OPT_FROM},
	{"pad", no_argument, NULL, OPT_PAD},
	{"azure", no_argument, NULL, OPT_AZURE},
	{"force", no_argument, NULL, 'f'},
	{NULL, 0, NULL, 0},
};

#define BUF_LEN (1u << 20)
#define AZURE_UNIT (1u << 20)
#define ZERO_UNIT 4096u /* zeros of this size and alignment become holes */

struct job {
	struct cli_common common;
	struct img_create create;
	bool typed, pad, azure;
	bool device; /* DST is one: zeros have to be written */
	const char *src, *dst;
	struct img_chain *in, *out; /* out NULL: stdout */
	struct cli_progress progress;
};

static int put(struct job *j, const uint8_t *buf, uint64_t off, uint64_t len, struct img_err *err)
{
	if (!j->out)
		return io_stream_write(STDOUT_FILENO, buf, len, "standard output", err);
	return img_write(j->out, buf, off, len, false, err);
}

static int put_zeros(struct job *j, uint64_t off, uint64_t len, struct img_err *err)
{
	static const uint8_t zeros[64 << 10];

	if (j->device && len)
		return img_zero(j->out, off, len, false, err);
	while (!j->out && len) {
		uint64_t n = u64_min(len, sizeof(zeros));

		if (put(j, zeros, 0, n, err) < 0)
			return -1;
		len -= n;
	}
	return 0;
}

/* Writes what is not zero; a new disk is zeros already. */
static int put_sparse(struct job *j, const uint8_t *buf, uint64_t off, uint64_t len,
		      struct img_err *err)
{
	uint64_t start = 0, at = 0;

	if (!j->out || j->device)
		return put(j, buf, off, len, err);
	while (at < len) {
		uint64_t n = u64_min(len - at, ZERO_UNIT - (off + at) % ZERO_UNIT);
		bool zero = bytes_are_zero(buf + at, n);

		if (zero && at > start && put(j, buf + start, off + start, at - start, err) < 0)
			return -1;
		at += n;
		if (zero)
			start = at;
	}
	return len > start ? put(j, buf + start, off + start, len - start, err) : 0;
}

static int copy_run(void *ctx, const struct img_run *run, uint8_t *buf, struct img_err *err)
{
	struct job *j = ctx;
	uint64_t len = run->len;

	/* The short last sector of a padded disk is followed by zeros. */
	if (buf && len % SECTOR && j->create.type != IMG_RAW) {
		len = u64_round_up(len, SECTOR);
		memset(buf + run->len, 0, len - run->len);
	}
	if (buf ? put_sparse(j, buf, run->off, len, err) < 0 : put_zeros(j, run->off, len, err) < 0)
		return -1;
	if (cli_progress(&j->progress, run->off, img_size(j->in)))
		return img_err_set(err, IMG_AGAIN,
				   j->device ? "interrupted; the device holds a part"
					     : "interrupted; nothing was made");
	return 0;
}

static int copy(struct job *j, struct img_err *err)
{
	struct img_walk w = {.end = img_size(j->in),
			     .base = img_layers(j->in),
			     .unit = BUF_LEN,
			     .buf = aligned_alloc(4096, BUF_LEN),
			     .visit = copy_run,
			     .ctx = j};
	int rc;

	if (!w.buf)
		return img_err_errno(err, ENOMEM, "convert");
	cli_progress_start(&j->progress, &j->common, "convert");
	rc = img_walk(j->in, &w, err);
	if (rc == 0)
		cli_progress_end(&j->progress, w.end);
	free(w.buf);
	return rc;
}

/* --force must not destroy what is being read. A device may have several names. */
static int check_target(struct job *j, struct img_err *err)
{
	struct img_err ignored = {0};
	struct stat st, in;
	bool same = false;

	if (stat(j->dst, &st) < 0)
		return 0;
	same = img_find_layer(j->in, j->dst, &ignored) >= 0;
	for (unsigned i = 0; i < img_layers(j->in); i++)
		same |= S_ISBLK(st.st_mode) && stat(img_layer_real(j->in, i), &in) == 0 &&
			S_ISBLK(in.st_mode) && in.st_rdev == st.st_rdev;
	if (same)
		return img_err_set(err, IMG_USAGE, "%s: is a part of the source", j->dst);
	j->device = S_ISBLK(st.st_mode);
	return 0;
}

/* Size is known when this is called. */
static int to_file(struct job *j, struct img_err *err)
{
	struct img_new *n;

	if (img_create_begin(&n, j->dst, &j->create, err) < 0)
		return -1;
	j->out = img_new_chain(n);
	if (copy(j, err) == 0)
		return img_create_finish(n, err);
	img_create_abort(n);
	return -1;
}

static int check_device(struct job *j, struct img_err *err)
{
	if (j->create.type != IMG_RAW)
		return img_err_set(
			err, IMG_USAGE,
			"%s: a device takes only --type=raw: a VHD's footer must end its file",
			j->dst);
	if (!j->create.force)
		return img_err_set(err, IMG_CANTCREAT,
				   "%s: a device; it is not overwritten without --force", j->dst);
	return 0;
}

/* In place: a device has no other name under which it could become whole. */
static int to_device(struct job *j, struct img_err *err)
{
	struct img_open o = {.writable = true, .raw = true};
	int rc = -1, claim;

	if (check_device(j, err) < 0)
		return -1;
	/*
	 * The kernel gives a device that is mounted, or is a part of another, to nobody else
	 * this way.
	 */
	claim = open(j->dst, O_RDONLY | O_EXCL | O_CLOEXEC);
	if (claim < 0)
		return errno == EBUSY
			       ? img_err_set(err, IMG_AGAIN, "%s: in use, perhaps mounted", j->dst)
			       : img_err_errno(err, errno, "%s", j->dst);
	if (img_open(&j->out, j->dst, &o, err) < 0)
		goto out;
	if (img_size(j->out) < j->create.size)
		img_err_set(err, IMG_CANTCREAT, "%s: %" PRIu64 " bytes, the disk has %" PRIu64,
			    j->dst, img_size(j->out), j->create.size);
	else if (copy(j, err) == 0 &&
		 put_zeros(j, img_size(j->in), j->create.size - img_size(j->in), err) == 0)
		rc = img_flush(j->out, err);
	img_close(j->out);
out:
	close(claim);
	return rc;
}

static int set_size(struct job *j, struct img_err *err)
{
	uint64_t size = img_size(j->in);

	if (size == 0)
		return img_err_set(err, IMG_DATA, "%s: is empty: no disk", j->src);
	if (size % SECTOR && j->create.type != IMG_RAW && !j->pad)
		return img_err_set(
			err, IMG_DATA,
			"%s: its size is no multiple of 512; --pad fills the last sector with zeros",
			j->src);
	if (j->azure)
		j->create.size = u64_round_up(size, AZURE_UNIT);
	else
		j->create.size =
			j->create.type == IMG_RAW && !j->pad ? size : u64_round_up(size, SECTOR);
	return 0;
}

static int convert(struct job *j, struct img_err *err)
{
	int rc = -1;

	if (set_size(j, err) < 0)
		return -1;
	if (strcmp(j->dst, "-") == 0) {
		rc = copy(j, err);
		if (rc == 0)
			rc = put_zeros(j, img_size(j->in), j->create.size - img_size(j->in), err);
	} else if (check_target(j, err) == 0) {
		rc = j->device ? to_device(j, err) : to_file(j, err);
	}
	return rc;
}

static void parse_type(struct job *j)
{
	static const enum img_type types[] = {IMG_RAW, IMG_FIXED, IMG_DYNAMIC};

	for (size_t i = 0; i < 3; i++)
		if (strcmp(optarg, img_type_name(types[i])) == 0) {
			j->create.type = types[i];
			j->typed = true;
			return;
		}
	cli_usage("--type: '%s' is not raw, fixed or dynamic", optarg);
}

static void parse(int argc, char **argv, struct job *j)
{
	int opt;

	while ((opt = getopt_long(argc, argv, CLI_COMMON_SHORT "f", options, NULL)) != -1) {
		if (cli_common(&j->common, opt, optarg))
			continue;
		if (opt == OPT_TYPE)
			parse_type(j);
		else if (opt == OPT_FROM && strcmp(optarg, "raw") != 0)
			cli_usage("--from: '%s' is not raw", optarg);
		j->common.open.raw |= opt == OPT_FROM;
		j->pad |= opt == OPT_PAD || opt == OPT_AZURE;
		j->azure |= opt == OPT_AZURE;
		j->create.force |= opt == 'f';
	}
	if (argc - optind != 2)
		cli_usage("SRC and DST are needed");
	if (j->azure && j->typed && j->create.type != IMG_FIXED)
		cli_usage("--azure makes a fixed disk");
	if (!j->typed && !j->azure)
		cli_usage("--type is needed");
	if (j->azure)
		j->create.type = IMG_FIXED;
	j->src = argv[optind];
	j->dst = argv[optind + 1];
	if (strcmp(j->dst, "-") == 0) {
		if (j->create.type != IMG_RAW)
			cli_usage("only --type=raw can go to standard output");
		if (isatty(STDOUT_FILENO))
			cli_usage("standard output is a terminal");
	}
}

int main(int argc, char **argv)
{
	struct job j = {0};
	struct img_err err = {0};
	int status = 0;

	cli_init(argv, "vhd-convert", help);
	cli_common_init(&j.common);
	parse(argc, argv, &j);
	cli_catch_signals();
	if (img_open(&j.in, j.src, &j.common.open, &err) == 0) {
		cli_warn_chain(&j.common, j.in);
		convert(&j, &err);
	}
	if (err.code)
		status = cli_fail(&err);
	if (!j.in && err.code == IMG_DATA && !j.common.open.raw)
		cli_warn("a raw disk needs --from=raw");
	img_close(j.in);
	return cli_exit(status);
}
