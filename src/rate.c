/* SPDX-License-Identifier: BSD-2-Clause */
#include "config.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#include "cli.h"
#include "rate.h"

static volatile sig_atomic_t reread;
static const char *rate_file;
static uint64_t rate_now;

static void on_hup(int sig)
{
	(void)sig;
	reread = 1;
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

	if (reread) {
		reread = 0;
		if (read_rate(&err))
			cli_warn("%s; the rate stays as it is", err.msg);
	}
	return cli_interrupted();
}

int rate_limit(struct stream_pipe *to, uint64_t rate, const char *file, struct img_err *err)
{
	struct sigaction sa = {.sa_handler = on_hup};

	to->stop = stop;
	to->rate = rate;
	if (!file)
		return 0;
	/* Only here: without a file a lost terminal should end the transfer. */
	sigaction(SIGHUP, &sa, NULL);
	rate_file = file;
	if (read_rate(err))
		return -1;
	to->rate = rate_now;
	to->live_rate = &rate_now;
	return 0;
}
