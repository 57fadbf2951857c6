/* SPDX-License-Identifier: BSD-2-Clause */
/* vhd-sum: the content sum of what the guest sees, printed as md5sum does. */
#include "config.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const char help[] =
	"Usage: vhd-sum [options] DISK...\n"
	"       vhd-sum [options] --check FILE\n"
	"       vhd-sum [options] --keep DISK...\n"
	"Sum of what the guest sees on a disk, whatever its layout.\n"
	"\n"
	"      --check FILE     compare with the sums in FILE ('-': standard input)\n"
	"      --blocks         the sum of each MiB of one disk, for vhd-send --against\n"
	"      --seed=N         of the sums of --blocks, another one for each transfer\n"
	"      --known          read only what is not known: sums are kept beside the disk\n"
	"      --keep           print nothing, only read what is not known, where that can be kept\n"
	"      --json           report as JSON\n" CLI_HELP_CHAIN CLI_HELP_COMMON;

enum { OPT_CHECK = CLI_TOOL, OPT_BLOCKS, OPT_SEED, OPT_KNOWN, OPT_KEEP };

static const struct option options[] = {
	CLI_COMMON_LONG,
	CLI_CHAIN_LONG,
	{"check", required_argument, NULL, OPT_CHECK},
	{"blocks", no_argument, NULL, OPT_BLOCKS},
	{"seed", required_argument, NULL, OPT_SEED},
	{"known", no_argument, NULL, OPT_KNOWN},
	{"keep", no_argument, NULL, OPT_KEEP},
	{"json", no_argument, NULL, CLI_JSON},
	{NULL, 0, NULL, 0},
};

struct job {
	struct cli_common common;
	const char *check;
	bool json, blocks, seeded, known, keep;
	uint64_t seed;
	int status; /* of the first that failed */
	unsigned printed;
};

/* As md5sum: a line with an escaped name begins with a backslash. */
static void print_name(const char *name)
{
	for (; *name; name++) {
		if (*name == '\n')
			fputs("\\n", stdout);
		else if (*name == '\\')
			fputs("\\\\", stdout);
		else
			putchar(*name);
	}
}

static void unescape_name(char *name)
{
	char *out = name;

	for (; *name; name++) {
		if (*name == '\\' && name[1]) {
			name++;
			*out++ = *name == 'n' ? '\n' : *name;
		} else {
			*out++ = *name;
		}
	}
	*out = '\0';
}

static int sum_disk(struct job *j, const char *path, uint64_t *size, struct img_sum_result *r,
		    struct img_err *err)
{
	struct cli_progress progress;
	const struct img_sum_how how = {
		.known = j->known, .keep = j->keep, .progress = cli_progress, .ctx = &progress};
	struct img_chain *c;
	int rc;

	if (img_open(&c, path, &j->common.open, err) < 0)
		return -1;
	cli_warn_chain(&j->common, c);
	*size = img_size(c);
	cli_progress_start(&progress, &j->common, "sum");
	rc = img_sum_disk(c, &how, r, err);
	cli_progress_end(&progress, *size);
	img_close(c);
	return rc;
}

/* Whoever wanted less than all read is told what it was. */
static void tell_read(const struct job *j, const char *path, const struct img_sum_result *r)
{
	char human[32];

	if (j->known && !j->common.quiet && !j->json)
		cli_warn("%s: %s of it were read, the rest is known", path,
			 cli_human(r->read, human));
}

/* Runs of equal chunks, which are mostly zeros, take one line. */
struct blocks {
	uint8_t sum[IMG_SUM_BYTES];
	uint64_t n;
};

static void print_run(struct blocks *b)
{
	if (!b->n)
		return;
	for (size_t i = 0; i < sizeof(b->sum); i++)
		printf("%02x", b->sum[i]);
	if (b->n > 1)
		printf(" %" PRIu64, b->n);
	putchar('\n');
	b->n = 0;
}

static void on_chunks(void *ctx, uint64_t first, uint64_t n, const uint8_t sum[IMG_SUM_BYTES])
{
	struct blocks *b = ctx;

	(void)first;
	if (b->n && memcmp(b->sum, sum, sizeof(b->sum)) != 0)
		print_run(b);
	memcpy(b->sum, sum, sizeof(b->sum));
	b->n += n;
}

static int sum_blocks(struct job *j, const char *path, struct img_err *err)
{
	char uuid[IMG_UUID_STR] = "-";
	struct cli_progress progress;
	struct blocks blocks = {.n = 0};
	const struct img_sum_how how = {.known = j->known,
					.seed = j->seed,
					.progress = cli_progress,
					.ctx = &progress,
					.chunks = on_chunks,
					.chunks_ctx = &blocks};
	struct img_sum_result r;
	struct img_chain *c;
	int rc;

	if (img_open(&c, path, &j->common.open, err) < 0)
		return -1;
	cli_warn_chain(&j->common, c);
	if (img_layer_info(c, 0)->has_uuid)
		img_uuid_str(img_layer_info(c, 0)->uuid, uuid);
	printf("vhd-sums 1 %" PRIu64 " %" PRIu64 " %s\n", img_size(c), j->seed, uuid);
	cli_progress_start(&progress, &j->common, "sum");
	rc = img_sum_disk(c, &how, &r, err);
	if (rc == 0) {
		print_run(&blocks);
		printf("end %s\n", r.sum);
		tell_read(j, path, &r);
	}
	cli_progress_end(&progress, img_size(c));
	img_close(c);
	return rc;
}

static void do_blocks(struct job *j, const char *path)
{
	struct img_err err = {0};

	if (sum_blocks(j, path, &err) < 0)
		j->status = cli_fail(&err);
}

static void parse_seed(struct job *j, const char *s)
{
	char *end;

	errno = 0;
	j->seed = strtoull(s, &end, 10);
	if (errno || *end || *s < '0' || *s > '9')
		cli_usage("--seed=%s: not a number below 2^64", s);
	j->seeded = true;
}

static void print_result(struct job *j, const char *path, uint64_t size,
			 const struct img_sum_result *r, const char *want)
{
	const char *sum = r->sum;
	bool ok = want && strcmp(sum, want) == 0;

	if (j->json) {
		fputs(j->printed++ ? ",{\"file\":" : "{\"file\":", stdout);
		cli_json_string(stdout, path);
		printf(",\"size\":%" PRIu64 ",\"sum\":\"%s\"", size, sum);
		if (j->known)
			printf(",\"read\":%" PRIu64, r->read);
		if (want)
			printf(",\"ok\":%s", ok ? "true" : "false");
		putchar('}');
	} else if (!want) {
		printf("%s%s  ", strpbrk(path, "\n\\") ? "\\" : "", sum);
		print_name(path);
		putchar('\n');
	} else if (!ok || !j->common.quiet) {
		print_name(path);
		printf(": %s\n", ok ? "OK" : "FAILED");
	}
}

static void do_disk(struct job *j, const char *path, const char *want)
{
	struct img_err err = {0};
	struct img_sum_result r;
	uint64_t size;
	int status = 0;

	if (sum_disk(j, path, &size, &r, &err) < 0) {
		status = cli_fail(&err);
	} else if (!j->keep) {
		tell_read(j, path, &r);
		print_result(j, path, size, &r, want);
		if (want && strcmp(r.sum, want) != 0)
			status = IMG_DATA;
	}
	if (!j->status)
		j->status = status;
}

/* One line "SUM  NAME"; false when it is none. */
static bool check_line(struct job *j, char *line)
{
	bool escaped = *line == '\\';
	char *sum = line + escaped, *name = sum + IMG_SUM_STR - 1;

	if (strspn(sum, "0123456789abcdef") != IMG_SUM_STR - 1 || strncmp(name, "  ", 2) != 0)
		return false;
	*name = '\0';
	name += 2;
	if (escaped)
		unescape_name(name);
	do_disk(j, name, sum);
	return true;
}

static void do_check(struct job *j)
{
	FILE *f = strcmp(j->check, "-") == 0 ? stdin : fopen(j->check, "re");
	size_t room = 0, good = 0, bad = 0;
	char *line = NULL;
	ssize_t n;

	if (!f) {
		cli_warn("%s: %s", j->check, strerror(errno));
		j->status = errno == ENOENT ? IMG_NOINPUT : errno == EACCES ? IMG_PERM : IMG_IO;
		return;
	}
	while ((n = getline(&line, &room, f)) > 0) {
		if (line[n - 1] == '\n')
			line[n - 1] = '\0';
		if (check_line(j, line))
			good++;
		else
			bad++;
	}
	if (ferror(f)) {
		cli_warn("%s: %s", j->check, strerror(errno));
		j->status = IMG_IO;
	}
	if (!good || bad) {
		cli_warn(good ? "%s: %zu lines are no sums" : "%s: holds no sum", j->check, bad);
		if (!j->status)
			j->status = IMG_DATA;
	}
	free(line);
	if (f != stdin)
		fclose(f);
}

int main(int argc, char **argv)
{
	struct job j = {0};
	int opt;

	cli_init(argv, "vhd-sum", help);
	cli_common_init(&j.common);
	while ((opt = getopt_long(argc, argv, CLI_COMMON_SHORT, options, NULL)) != -1) {
		if (cli_common(&j.common, opt, optarg))
			continue;
		if (opt == OPT_CHECK)
			j.check = optarg;
		j.json |= opt == CLI_JSON;
		j.blocks |= opt == OPT_BLOCKS;
		j.keep |= opt == OPT_KEEP;
		j.known |= opt == OPT_KNOWN || opt == OPT_KEEP;
		if (opt == OPT_SEED)
			parse_seed(&j, optarg);
	}
	if (j.check ? optind < argc : optind == argc)
		cli_usage(j.check ? "either --check or DISK" : "DISK is missing");
	if (j.blocks && (j.check || j.json || argc - optind != 1))
		cli_usage("--blocks is for one disk, without --check and --json");
	if (j.keep && (j.check || j.blocks || j.json))
		cli_usage("--keep prints nothing; it goes without --check, --blocks and --json");
	if (j.seeded && !j.blocks)
		cli_usage("--seed goes with --blocks");
	if (j.known && j.seed)
		cli_usage("--known: what is known are sums without a seed");
	cli_catch_signals();
	j.common.open.maybe_raw = true;
	if (j.blocks) {
		do_blocks(&j, argv[optind]);
		return cli_exit(j.status);
	}
	if (j.json)
		fputs("{\"version\":1,\"sums\":[", stdout);
	if (j.check)
		do_check(&j);
	for (; optind < argc && !cli_interrupted(); optind++)
		do_disk(&j, argv[optind], NULL);
	if (j.json)
		fputs("]}\n", stdout);
	return cli_exit(j.status);
}
