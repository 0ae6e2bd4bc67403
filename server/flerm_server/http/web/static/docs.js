"use strict";
// The REST documentation, drawn by swagger-ui from this registry's own description.
const dark = matchMedia("(prefers-color-scheme: dark)");
const themed = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", themed);
themed();
const description = document.getElementById("swagger").dataset.openapi;
SwaggerUIBundle({ url: description, dom_id: "#swagger", deepLinking: true, defaultModelsExpandDepth: 0, validatorUrl: null });
